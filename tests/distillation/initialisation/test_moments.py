"""What a teacher's heads do, summed over the first batches."""

import numpy as np
import pytest
import torch
from random_captures import naive, random_capture

from dit_shd.distillation.initialisation.moments import HeadMoments
from dit_shd.squeezing.squeeze import squeeze
from dit_shd.squeezing.squeezer import Squeezer


def test_shares_of_heads_are_of_the_plans_groups_and_the_losss_method():
    capture, groups = random_capture(b=3, h=6, bias=False), ((0, 3, 5), (1, 2, 4))
    moments = HeadMoments(6)
    moments.add(capture, groups, Squeezer(method="joint"))
    torch.testing.assert_close(moments.weight, squeeze(capture, 2, groups, "joint").weight.mean((0, 2)))


@pytest.mark.parametrize("method", ["joint", "hard"])
def test_every_token_counts_alike_and_padding_not_at_all(method):
    """Queries, keys and outputs A V of two batches, of 3 samples and of 1, one by one."""
    measured, groups = HeadMoments(4), ((0, 3), (1, 2))
    rows, shares = ([], [], []), []
    for capture, lengths in ((random_capture(b=3, h=4), [7, 3, 5]), (random_capture(b=1, h=4, seed=1), [4])):
        weight = (torch.arange(7) < torch.tensor(lengths)[:, None]).double()
        measured.add(capture, groups, Squeezer(method=method, seed=5), weight)
        for tokens, x in zip(rows, (capture.query, capture.key, naive(capture)[0] @ capture.value)):
            tokens += [x[sample, :, i].flatten().numpy() for sample, i in weight.nonzero().tolist()]
        shares.append(squeeze(capture, 2, groups, method, seed=5, row_weight=weight).weight.mean(2))
    query, key, output = map(np.array, rows)
    wanted = query.T @ query / 19, np.cov(key.T, ddof=0), np.cov(output.T, ddof=0)
    for found, of_tokens in zip(measured.moments(), wanted):
        np.testing.assert_allclose(found, of_tokens, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(measured.weight, torch.cat(shares).mean(0))
