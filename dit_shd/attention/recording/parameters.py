"""The parameters of a model whose numbers stay where they are, and which of them a product's weight is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Size, Tensor, nn

_PLAIN = (Tensor, nn.Parameter)
"""The kinds of tensors whose numbers are at their address."""


@dataclass(frozen=True, eq=False)
class Held:
    """A parameter, and where it is in the model."""

    parameter: Tensor
    """Kept while it is looked for, so that no other tensor gets its id."""
    module: nn.Module
    name: str
    shape: Size
    """Between forwards; sharded parameters have another one in them."""


class Parameters:
    """Those of a model that have their numbers at hand between forwards."""

    def __init__(self, root: nn.Module):
        self._by_id: dict[int, list[Held]] = {}
        """In every module that holds it, since modules may share one."""
        self._by_address: dict[int, list[Held]] = {}
        """Of their first number, since many parameters may lie in one storage."""
        for module in root.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and _resident(parameter):
                    held = Held(parameter, module, name, parameter.shape)
                    self._by_id.setdefault(id(parameter), []).append(held)
                    if type(parameter) in _PLAIN:
                        self._by_address.setdefault(parameter.data_ptr(), []).append(held)

    def get(self, parameter: Tensor, running: nn.Module | None = None) -> Held | None:
        """What is known of a parameter; of one that several modules share, in the module that is running, or in it."""
        return _nearest(self._by_id.get(id(parameter), ()), running)

    def holding(self, weight: Tensor, running: nn.Module) -> tuple[Held, bool] | None:
        """The parameter that a product's weight [k,e] is a view of, and whether it was transposed on the way."""
        held = self.get(weight, running)
        if held is not None and (type(weight) in _PLAIN or hasattr(weight, "placements")):
            return (held, False) if held.shape == weight.shape else None
        there = self._by_address.get(weight.data_ptr(), ()) if type(weight) in _PLAIN else ()
        same = [each for each in there if each.shape == each.parameter.shape and _same_numbers(each.parameter, weight)]
        held = _nearest(same, running)
        if held is None:
            return None
        flat: Any = held.parameter.flatten(1) if held.parameter.ndim > 2 else held.parameter
        for lies, flipped in ((flat, False), (flat.t(), True)):
            if lies.shape == weight.shape and lies.stride() == weight.stride():
                return held, flipped
        return None


def _nearest(holders: Sequence[Held], running: nn.Module | None) -> Held | None:
    """Of those that hold one parameter, the one that is running, or in it."""
    inside = set(running.modules()) if running is not None and len(holders) > 1 else ()
    near = [held for held in holders if held.module in inside]
    exact = [held for held in near if held.module is running]
    return next(iter((*exact, *near, *holders)), None)


def _same_numbers(parameter: Tensor, weight: Tensor) -> bool:
    """Whether both begin at one address; a parameter may have moved since its address was noted."""
    return (parameter.numel(), parameter.dtype, parameter.data_ptr()) == (
        weight.numel(),
        weight.dtype,
        weight.data_ptr(),
    )


def _resident(parameter: Tensor) -> bool:
    """Whether a parameter has its numbers at hand between forwards, or its process's part of a parallel one."""
    if hasattr(parameter, "placements"):
        return any(getattr(each, "dim", None) == 1 for each in parameter.placements)  # type: ignore[attr-defined]
    return parameter.device.type != "meta" and parameter.numel() > 0
