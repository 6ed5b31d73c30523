"""The parameters of a model whose numbers stay where they are, and which of them a product's weight is."""

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
        self._by_id: dict[int, Held] = {}
        self._by_address: dict[int, Held] = {}
        """Of their first number, since many parameters may lie in one storage."""
        for module in root.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and _resident(parameter):
                    held = self._by_id[id(parameter)] = Held(parameter, module, name, parameter.shape)
                    if type(parameter) in _PLAIN:
                        self._by_address[parameter.data_ptr()] = held

    def get(self, parameter: Tensor) -> Held | None:
        """What is known of a parameter."""
        return self._by_id.get(id(parameter))

    def holding(self, weight: Tensor) -> tuple[Held, bool] | None:
        """The parameter that a product's weight [k,e] is a view of, and whether it was transposed on the way."""
        held = self.get(weight)
        if held is not None and (type(weight) in _PLAIN or hasattr(weight, "placements")):
            return (held, False) if held.shape == weight.shape else None
        held = self._by_address.get(weight.data_ptr()) if type(weight) in _PLAIN else None
        if held is None or held.shape != held.parameter.shape or not _same_numbers(held.parameter, weight):
            return None
        flat: Any = held.parameter.flatten(1) if held.parameter.ndim > 2 else held.parameter
        for lies, flipped in ((flat, False), (flat.t(), True)):
            if lies.shape == weight.shape and lies.stride() == weight.stride():
                return held, flipped
        return None


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
