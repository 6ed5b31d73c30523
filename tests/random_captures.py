"""Captures of random numbers, and the naive mathematics of them."""

import dataclasses

import oracle
import torch

from dit_shd.attention.bias import DenseBias
from dit_shd.attention.capture import Capture


def random_capture(b=2, h=4, n=7, m=7, d=5, e=11, seed=0, dtype=torch.float64, bias=True, causal=False):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    return Capture(
        draw(b, h, n, d) * 2,
        draw(b, h, m, d),
        draw(b, h, m, d),
        d**-0.5,
        DenseBias(draw(1, h, n, m)) if bias else None,
        causal,
        draw(h, d, e),
    )


def naive(capture):
    bias = None if capture.bias is None else capture.bias.leaves[0]
    a = oracle.maps(capture.query, capture.key, capture.scale, bias, capture.causal)
    return a, oracle.head_outputs(capture.value, capture.out)


def shared_keys(h=6, keys=2, **options):
    """A capture whose keys and values are shared by h / keys query heads each, and the same written out."""
    whole = random_capture(h=h, bias=False, **options)
    few = dataclasses.replace(whole, key=whole.key[:, :keys], value=whole.value[:, :keys])
    return few, dataclasses.replace(
        few, key=few.key.repeat_interleave(h // keys, 1), value=few.value.repeat_interleave(h // keys, 1)
    )
