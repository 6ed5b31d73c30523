"""Draws that are functions of (seed, purpose, step, index) alone."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from dit_shd.core import rng
from dit_shd.core.rng import Draws


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_a_draw_is_a_function_of_its_index(shape):
    for draw in (rng.normal, rng.uniform):
        whole = draw(5, "noise", 7, range(6), shape)
        assert whole.shape == (6, *shape)
        assert torch.equal(whole[2:4], draw(5, "noise", 7, [2, 3], shape))
        assert draw(5, "noise", 7, [], shape).shape == (0, *shape)
        others = (draw(6, "noise", 7, range(6), shape), draw(5, "label", 7, range(6), shape))
        assert not any(torch.equal(whole, other) for other in (*others, draw(5, "noise", 8, range(6), shape)))


def test_every_epoch_visits_each_sample_once():
    visited = np.concatenate([Draws(3, step, range(8), 8).indices(60) for step in range(15)])  # two epochs of 60
    assert sorted(visited[:60]) == sorted(visited[60:]) == list(range(60))
    assert list(visited[:60]) != list(visited[60:])


def test_libraries_draw_keyed_numbers_and_their_generators_are_left_alone():
    def drawn():
        return random.random(), np.random.random(), torch.rand(()).item()  # noqa: NPY002

    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    keyed = []
    for step in (4, 4, 5):
        with rng.keyed_generators(1, "augmentation", step):
            keyed.append(drawn())
    assert keyed[0] == keyed[1]
    assert not set(keyed[0]) & set(keyed[2])
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert after == states


def test_numpys_generator_alone_is_keyed():
    """Torch's and Python's go on meanwhile: of a step's forward, which another thread takes."""
    with rng.keyed_generators(1, "mixing", 4):
        expected = np.random.random()  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one, two = torch.rand(2), torch.rand(2)
        torch.manual_seed(0)
        assert torch.equal(torch.rand(2), one)
        before = np.random.get_state()[1].tolist()  # noqa: NPY002
        with rng.keyed_numpy(1, "mixing", 4):
            assert np.random.random() == expected  # noqa: NPY002
            assert torch.equal(torch.rand(2), two)
            three = torch.get_rng_state().tolist()
        assert torch.get_rng_state().tolist() == three
        assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_threads_do_not_draw_from_each_others_keys():
    """A prefetch thread mixes images while the main one draws a step again."""

    def drawn(step):
        with rng.keyed_numpy(0, "mixing", step):
            first = np.random.random()  # noqa: NPY002
            time.sleep(1e-3)
            return first, np.random.random()  # noqa: NPY002

    want = [drawn(step) for step in range(24)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(drawn, range(24))) == want


def test_torchs_own_generator_is_seeded_by_step_and_place():
    drawn = []
    with torch.random.fork_rng():
        for place in [(0, 0), (0, 0), (0, 1), (1, 0)]:
            rng.seed_torch(3, "forward/plain", *place)
            drawn.append(float(torch.rand(())))
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


def test_another_seed_has_another_order():
    orders = [Draws(seed, 0, range(60), 60).indices(60).tolist() for seed in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
