"""Inner products by kernels in parts: the same weights, however memory and long sums are split."""

import pytest
import torch

from dit_shd.attention.capture import Capture
from dit_shd.attention.kernels.captures import interpreted
from dit_shd.squeezing.kernels import products
from dit_shd.squeezing.projections import Projections
from dit_shd.squeezing.squeeze import squeeze

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
runs = pytest.mark.skipif(not (interpreted() or DEVICE == "cuda"), reason="kernels need a GPU or Triton's interpreter")


@runs
@pytest.mark.parametrize("split", [{"GRAMS_MIB": 1e-6}, {"SPLIT": 4}, {"GRAMS_MIB": 1e-6, "SPLIT": 8}])
def test_weights_do_not_depend_on_how_the_work_is_split(split, monkeypatch):
    r = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 4, 16, 8, generator=r).to(DEVICE) for _ in range(3))
    teacher = Capture(q, k, v, 0.4, out=torch.randn(4, 8, 32, generator=r).to(DEVICE))
    whole = squeeze(teacher, 2, backend="triton")
    for name, value in split.items():
        monkeypatch.setattr(products, name, value)
    parts = squeeze(teacher, 2, backend="triton")
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts.residual, whole.residual, rtol=1e-5, atol=1e-6)
    exact = squeeze(teacher, 2)
    torch.testing.assert_close(parts.weight, exact.weight, rtol=1e-4, atol=1e-5)


def test_what_is_dropped_or_replaced_begins_a_generation():
    cache, groups = Projections(size=2), [[0, 1]]
    outs = [torch.randn(2, 3, 4) for _ in range(3)]
    for out in (*outs[:2], *outs[:2]):
        cache.grams(out, groups)
    assert cache.generation == 0
    cache.grams(outs[2], groups)
    dropped = cache.generation
    outs[2].add_(1.0)
    cache.grams(outs[2], groups)
    replaced = cache.generation
    cache.clear()
    assert 0 < dropped < replaced < cache.generation
