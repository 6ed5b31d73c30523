"""The repeated blocks of any transformer."""

from torch import nn


def blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a transformer: the members of its outermost lists of modules."""
    found: list[nn.Module] = []
    for child in model.children():
        found += list(child) if isinstance(child, nn.ModuleList) else blocks(child)
    return [block for block in found if any(True for _ in block.parameters())]
