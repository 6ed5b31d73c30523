"""The functions of PyTorch that multiply rows with a matrix, and what each takes the rows and the matrix from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_shd.attention.recording.arrangement import Arrangement


@dataclass(frozen=True, eq=False)
class Product:
    """One call of such a function, with one of its arguments as the rows."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    at: int | str
    """The position or name of the argument that holds the rows."""
    arrangements: tuple[Arrangement, ...]
    """How the rows may lie in it."""
    weight: Tensor | None = None
    """The matrix, where it is an argument with two dimensions."""
    transposed: bool = False
    """Whether that is [in,out] instead of [out,in]."""

    @property
    def rows(self) -> Tensor:
        """The argument that holds the rows."""
        return self.args[self.at] if isinstance(self.at, int) else self.kwargs[self.at]

    def of(self, rows: Tensor) -> Any:
        """The product with other rows."""
        if isinstance(self.at, int):
            return self.function(*self.args[: self.at], rows, *self.args[self.at + 1 :], **self.kwargs)
        return self.function(*self.args, **{**self.kwargs, self.at: rows})


def products(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Product]:
    """The ways in which a call may be rows times a matrix; none for functions that multiply nothing."""
    if function in _CONVOLUTIONS:
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        groups = args[6] if len(args) > 6 else kwargs.get("groups", 1)
        if isinstance(weight, Tensor) and set(weight.shape[2:]) == {1}:
            at = "input" if "input" in kwargs else 0
            yield Product(function, args, kwargs, at, ("channels",), weight.flatten(1) if groups == 1 else None)
    elif function is torch.einsum:
        for i, operand in enumerate(args[1:], start=1):
            if isinstance(operand, Tensor):
                yield Product(function, args, kwargs, i, ("last", "heads", "heads first"))
    elif function in _PRODUCTS:
        position, name, weight_at, weight_name, transposed = _PRODUCTS[function]
        at = name if name in kwargs else position
        weight = args[weight_at] if len(args) > weight_at else kwargs.get(weight_name)
        flat = isinstance(weight, Tensor) and weight.ndim == 2 and kwargs.get("alpha", 1) == 1
        yield Product(function, args, kwargs, at, ("last",), weight if flat else None, transposed)


def is_product(function: Any) -> bool:
    """Whether a function multiplies."""
    return function in _PRODUCTS or function in _CONVOLUTIONS or function is torch.einsum


_aten = torch.ops.aten
_MATMUL = (0, "input", 1, "other", True)
_PRODUCTS: dict[Any, tuple[int, str, int, str, bool]] = {
    F.linear: (0, "input", 1, "weight", False),
    torch.addmm: (1, "mat1", 2, "mat2", True),
    _aten.linear.default: (0, "input", 1, "weight", False),
    _aten.addmm.default: (1, "mat1", 2, "mat2", True),
    _aten.mm.default: _MATMUL,
    **dict.fromkeys((torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__), _MATMUL),
}
_CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d}
