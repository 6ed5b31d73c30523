"""Projectors: sizes, refusals, and an orthonormal map that is so in low precision, too."""

import pytest
import torch

from dit_shd.core.errors import UserError
from dit_shd.distillation.projectors import Orthonormal, check_kind, projector


def test_sizes():
    s, t = torch.zeros(2, 3, 4), torch.zeros(2, 3, 6)
    for kind, count in (("linear", 4 * 6 + 6), ("mlp", 4 * 6 + 6 + 6 * 6 + 6)):
        made = projector("x", kind, s, t)
        assert made(s).shape == t.shape
        assert sum(p.numel() for p in made.parameters()) == count
    assert torch.equal(projector("x", "none", t, t)(t), t)
    assert projector("x", "linear", s.to("meta"), t).weight.device.type == "meta"


def test_an_orthonormal_map_keeps_lengths():
    made = Orthonormal(4, 6, torch.zeros(1))
    x = torch.randn(5, 4)
    torch.testing.assert_close(made(x).norm(dim=1), x.norm(dim=1))
    weight = made.bfloat16().weight
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight.T @ weight, torch.eye(4), rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(made.weight, weight)


def test_refusals():
    with pytest.raises(UserError, match="wider"):
        Orthonormal(6, 4, torch.zeros(1))
    with pytest.raises(UserError, match=r"losses\.x\.projector: wanted one of linear, mlp, none, found 'tree'"):
        check_kind("x", "tree")
