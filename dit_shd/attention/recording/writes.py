"""Whether tensors were written to since attention worked with them: memory that layers or forwards share."""

from collections.abc import Sequence

from torch import Tensor

from dit_shd.core.errors import UserError

Mark = int | None
"""How often a tensor had been written to; None where that is not known (there is none, or it was in inference mode)."""


def marks_of(*tensors: Tensor | None) -> tuple[Mark, ...]:
    """The marks of some tensors as they are now."""
    return tuple(None if x is None or x.is_inference() else x._version for x in tensors)


def written(marks: Sequence[Mark], tensors: Sequence[Tensor | None]) -> bool:
    """Whether any of some tensors has been written to since it had its mark."""
    return any(mark is not None and x is not None and x._version != mark for mark, x in zip(marks, tensors))


def versions(*tensors: Tensor | None) -> tuple[int, ...]:
    """How often each tensor has been written to, where that is known (not in inference mode)."""
    return tuple(x._version for x in tensors if x is not None and not x.is_inference())


def written_to(layer: str) -> UserError:
    """What is to be raised for a layer that worked with memory that another one has used again."""
    return UserError(
        f"capture: {layer}: its queries, keys, values or mask were changed in place after it ran (memory that layers "
        "or forwards share?), so its maps are not known any more; give each layer tensors of its own, and take the "
        "loss before the next forward writes to them"
    )
