"""Trees of tensors, gathered."""

import torch

from dit_shd.core.dtensor import gather_tree


def test_who_has_no_use_for_the_tensors_keeps_none():
    weight = torch.ones(3, requires_grad=True)
    tree = {"a": [weight, 2], "b": ({"c": weight * 2},)}
    kept, empty = gather_tree(tree), gather_tree(tree, kept=False)
    assert torch.equal(kept["a"][0], weight) and not kept["a"][0].requires_grad
    assert torch.equal(kept["b"][0]["c"], weight * 2) and kept["a"][1] == empty["a"][1] == 2
    assert empty["a"][0].numel() == empty["b"][0]["c"].numel() == 0
