"""The channels that are kept: against naive forward selection."""

import numpy as np
import torch

from dit_shd.distillation.initialisation.importance import most_important


def test_the_channels_kept_are_those_of_naive_forward_selection():
    r = np.random.default_rng(0)
    inputs = [r.normal(size=(80, 4)) @ r.normal(size=(4, 9)) + 0.3 * r.normal(size=(80, 9)) for _ in range(2)]
    inputs = [x - x.mean(0) for x in inputs]
    maps = [r.normal(size=(5, 9)), r.normal(size=(3, 9))]

    def missing(kept):
        """The share of the maps' energy that regression on the kept channels leaves."""
        total = 0.0
        for x, w in zip(inputs, maps):
            fit, *_ = np.linalg.lstsq(x[:, kept], x, rcond=None)
            total += (((x - x[:, kept] @ fit) @ w.T) ** 2).sum() / ((x @ w.T) ** 2).sum()
        return total

    kept = []
    for _ in range(5):
        kept.append(min(set(range(9)) - set(kept), key=lambda i: missing([*kept, i])))
    seen = [(torch.from_numpy(x.T @ x / 80), torch.from_numpy(w)) for x, w in zip(inputs, maps)]
    assert most_important(5, seen) == tuple(sorted(kept))


def test_a_channel_counts_by_what_it_takes_of_the_output():
    """By hand: of the output's 4 * 1 + 1 * 5, the channel of variance 4 alone leaves 5, the other alone leaves 4."""
    reader = torch.tensor([4.0, 1]).diag(), torch.tensor([1.0, 5]).sqrt().diag()
    assert most_important(1, [reader]) == (1,)
