"""What a teacher's heads do, summed over the first batches."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from random_captures import naive, random_capture
from runs import diffusion
from small_students import build

from dit_shd.core.plugins import Plugin
from dit_shd.data.datasets import DATASETS
from dit_shd.distillation.initialisation.initialise import Initialisation, initialise, moment_batches
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


@pytest.mark.parametrize("at_once", [3, 32, 64])
@pytest.mark.parametrize("batch_size", [1, 8, 32, 48, 256])
def test_as_many_images_are_measured_as_were_asked_for(batch_size, at_once):
    """The first ones of the run, each once, whatever its batch size is; no more at once than fit."""

    class Noted:
        places: ClassVar = []

        def draw(self, draws):
            assert len(draws.positions) <= min(at_once, 32)
            assert (draws.seed, draws.batch_size) == (7, batch_size)
            self.places += [(draws.step, position) for position in draws.positions]
            return []

    task = Noted()
    task.places.clear()
    list(moment_batches(task, 7, batch_size, 100, at_once))
    assert task.places == [divmod(i, batch_size) for i in range(100)]


def test_images_may_be_measured_in_pieces(shapes):
    """Sums are over images, so that the weights are those of all at once, to rounding."""
    task = diffusion(DATASETS.build(Plugin("npz", {"path": str(shapes)})))
    students = []
    for at_once in (32, 5):
        student, teacher = build(seed=1), build(num_attention_heads=4)
        measured = list(moment_batches(task, 0, 32, 32, at_once))
        initialise(task, student, teacher, measured, Initialisation("teacher", heads="merge"))
        students.append(student.state_dict())
    whole, pieces = students
    assert all((x - pieces[name]).norm() <= 1e-3 * x.norm() for name, x in whole.items())
