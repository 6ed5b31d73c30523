"""Batches of a step: what the task draws, and what losses read of the data beside it."""

import torch

from dit_shd.data.datasets.npz import Npz
from dit_shd.tasks.diffusion import Diffusion
from dit_shd.training.batches import Batches


def test_what_losses_read_of_the_data_is_augmented_as_what_is_learned(shapes):
    """Half of the samples are mirrored, drawn each time: the clean image of REPA is the one that is noised."""
    task = Diffusion(mask_ratio=None)
    task.dataset = Npz(shapes, flip=True)
    batches = Batches(task, 3, 16, 16, fields=frozenset({"latents"}))
    for step in range(3):
        (batch,) = batches.whole(step)
        assert torch.equal(batch.data["latents"], batch.x_0)


def test_calibration_sees_each_of_the_first_images_once_in_even_pieces(shapes):
    task = Diffusion(mask_ratio=None)
    task.dataset = Npz(shapes, flip=False)
    whole, pieces = Batches(task, 3, 40, 40), Batches(task, 3, 40, 10, processes=2, process=1, at_once=5)
    (one,), found = (next(each.first_steps(1, torch.device("cpu"))) for each in (whole, pieces))
    assert len(found) == 7 and {len(batch.x_0) for batch in found} == {4, 5}
    assert torch.equal(torch.cat([batch.x_0 for batch in found]), one.x_0)


def test_processes_take_micro_batches_in_turn():
    by_process = [Batches(Diffusion(), 3, 8, 2, processes=2, process=process) for process in (0, 1)]
    places = [list(batches.places_of(range(5, 7))) for batches in by_process]
    assert places == [[(5, 0), (5, 4), (6, 0), (6, 4)], [(5, 2), (5, 6), (6, 2), (6, 6)]]
