"""What a teacher's heads do, summed over the first batches."""

import torch
from random_captures import random_capture

from dit_shd.distillation.initialisation.moments import HeadMoments
from dit_shd.squeezing.squeeze import squeeze
from dit_shd.squeezing.squeezer import Squeezer


def test_shares_of_heads_are_of_the_plans_groups_and_the_losss_method():
    capture, groups = random_capture(b=3, h=6, bias=False), ((0, 3, 5), (1, 2, 4))
    moments = HeadMoments(6)
    moments.add(capture, groups, Squeezer(method="joint"))
    torch.testing.assert_close(moments.weight, squeeze(capture, 2, groups, "joint").weight.mean((0, 2)))
