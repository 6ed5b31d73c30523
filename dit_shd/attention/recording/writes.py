"""Whether tensors were written to since attention worked with them: memory that layers or forwards share."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dit_shd.attention.recording.fingerprints import fingerprints
from dit_shd.core.dtensor import local
from dit_shd.core.errors import UserError

Mark = int | None
"""How often a tensor had been written to; None where that is not known (there is none, or it was in inference mode)."""


def marks_of(*tensors: Tensor | None) -> tuple[Mark, ...]:
    """The marks of some tensors as they are now."""
    return tuple(None if x is None or x.is_inference() else x._version for x in tensors)


def written(marks: Sequence[Mark], tensors: Sequence[Tensor | None]) -> bool:
    """Whether any of some tensors has been written to since it had its mark."""
    return any(mark is not None and x is not None and x._version != mark for mark, x in zip(marks, tensors))


def contents_of(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Fingerprints of the rows of tensors that count no writes: for a forward that is looked at, they take time."""
    return tuple(None if x is None or not _countless(x) else _rows(x) for x in tensors)


def rewritten(contents: Sequence[Tensor | None], tensors: Sequence[Tensor | None]) -> bool:
    """Whether any of some tensors holds other numbers than it did."""
    return any(c is not None and x is not None and not torch.equal(_rows(x), c) for c, x in zip(contents, tensors))


def _countless(x: Tensor) -> bool:
    return x.is_inference() and x.ndim > 1 and not x.is_meta and not x.is_nested


def _rows(x: Tensor) -> Tensor:
    """Fingerprints of rows, some at a time and none twice: a mask may be as large as the map."""
    x = local(x)
    for dim, step in enumerate(x.stride()):
        x = x if step else x.narrow(dim, 0, min(1, x.shape[dim]))
    return torch.cat([fingerprints(part) for part in x.split(1024, -2)], -1)


def uncounted(layer: str) -> UserError:
    """What is to be raised for such a layer in inference mode, where no forward but the first one is looked at."""
    return UserError(
        f"capture: {layer}: its queries, keys, values or mask were changed in place after it ran in an earlier forward "
        "(memory that layers share?), and under torch.inference_mode() PyTorch does not count writes; run the model "
        "under torch.no_grad(), or give each layer tensors of its own"
    )


def written_to(layer: str) -> UserError:
    """What is to be raised for a layer that worked with memory that another one has used again."""
    return UserError(
        f"capture: {layer}: its queries, keys, values or mask were changed in place after it ran (memory that layers "
        "or forwards share?), so its maps are not known any more; give each layer tensors of its own, and take the "
        "loss before the next forward writes to them"
    )
