"""What an entry of the table is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


def sequence(*shape: int) -> Callable[[], dict[str, Any]]:
    """One sequence of random numbers, the first argument."""
    return lambda: {"args": (torch.randn(*shape, generator=torch.Generator().manual_seed(0)),)}


def tokens(length: int = 9, **more: int) -> Callable[[], dict[str, Any]]:
    """Two texts; more: further integer inputs by name, of these lengths."""

    def draw() -> dict[str, Any]:
        g = torch.Generator().manual_seed(0)
        kwargs = {name: torch.randint(3, 50, (2, n), generator=g) for name, n in {"input_ids": length, **more}.items()}
        return {"kwargs": kwargs}

    return draw


@dataclass(frozen=True)
class Client:
    """A model, and what capture() makes of it."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]
    recorded: int = 0
    """How many captures; 0: it is refused."""
    left_out: int = 0
    """How many layers are left out as cross- or pooling attention."""
    reason: str = ""
    """A part of the words with which it is refused, or has no W^O."""
    projections: bool = True
    """Whether W^O is found."""
    whole: bool = True
    """Whether W^O times the result is the layer's output by itself (nothing else is multiplied along)."""
    exact: bool = True
    """Whether outputs are bit-identical: not where PyTorch's eval fast path has to be left."""
    call: str = ""
    """The method that runs the model; calling it, by default."""
    needs: tuple[str, ...] = field(default=())
    """Packages beside torch."""
    training: bool = False

    def run(self, model: nn.Module) -> Any:
        """One forward."""
        given = self.inputs()
        function = getattr(model, self.call) if self.call else model
        return function(*given.get("args", ()), **given.get("kwargs", {}))
