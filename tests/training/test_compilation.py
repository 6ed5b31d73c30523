"""Blocks are compiled once for each kind, however many there are."""

import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

from dit_shd.attention.kernels import captures
from dit_shd.models.families.mdt import MDTv2
from dit_shd.training.compilation import compile_blocks


def graphs(layers):
    """How many graphs a plain and a masked pass of a model under autocast compile, with gradients."""
    torch._dynamo.reset()
    model = MDTv2(8, 2, 4, layers, 2, 4, layers // 2, num_classes=3)
    compile_blocks(model, backend="eager")
    counters.clear()
    keep = torch.stack([torch.randperm(16)[:9].sort().values for _ in range(2)])
    with torch.autocast("cpu", torch.bfloat16):
        for kept in (None, keep):
            model(torch.randn(2, 4, 8, 8), torch.tensor([1, 2]), torch.tensor([0, 1]), kept).sample.sum().backward()
    return counters["stats"]["unique_graphs"]


def test_blocks_of_a_kind_share_one_compilation(monkeypatch):
    """With skip and without, plain and masked: four. As on a GPU, where attention is in the graph."""
    monkeypatch.setattr(captures, "serves", lambda *given: True)
    monkeypatch.setattr(captures, "attention", lambda q, k, v, scale, *given: F.scaled_dot_product_attention(q, k, v))
    assert [graphs(layers) for layers in (4, 12)] == [4, 4]
    torch._dynamo.reset()
