"""A student of any class that is its teacher with fewer blocks: whole blocks are copied, and all else as it is."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dit_shd.core.errors import UserError
from dit_shd.distillation.initialisation.plan import InitialisationPlan
from dit_shd.distillation.layer_map import LayerMap, layer_map
from dit_shd.models.blocks import named_blocks


def pairs(student: nn.Module, teacher: nn.Module, how: str | dict[str, str] | None) -> dict[str, str]:
    """Student block -> teacher block; evenly spaced in each list of blocks, unless named.

    Raises:
        UserError: Models of two classes, or blocks that do not exist.
    """
    if type(student) is not type(teacher):
        raise UserError(
            f"initialisation: wanted models of one class, found a {type(student).__name__} and a "
            f"{type(teacher).__name__}; use initialisation.weights=random"
        )
    rule: LayerMap = "sections" if how is None else how
    return layer_map(list(named_blocks(teacher)), list(named_blocks(student)), rule)


def check(student: nn.Module, teacher: nn.Module, layers: Mapping[str, str]) -> None:
    """Refuse models that differ in more than their depth.

    Args:
        student: Perhaps without weights.
        teacher: Likewise.
        layers: Student block -> teacher block.

    Raises:
        UserError: Naming the first tensor that differs.
    """
    available = teacher.state_dict()
    for name, tensor in student.state_dict().items():
        source = source_of(name, layers)
        other = available.get(source)
        if other is None or other.shape != tensor.shape:
            actual = "nothing" if other is None else list(other.shape)
            raise UserError(
                f"initialisation: {name} has shape {list(tensor.shape)} in the student, and {source} of the teacher "
                f"{actual}; blocks of this class are copied whole, so that the student may differ in depth alone; use "
                "initialisation.weights=random"
            )


@torch.no_grad()
def copy(student: nn.Module, teacher: nn.Module, layers: Mapping[str, str]) -> InitialisationPlan:
    """Copy the teacher's tensors into the student.

    Args:
        student: Whose tensors are overwritten.
        teacher: Of the same class and widths.
        layers: Student block -> teacher block.

    Returns:
        The plan: which block came from which.
    """
    check(student, teacher, layers)
    available = teacher.state_dict()
    for name, tensor in student.state_dict().items():
        source: Tensor = available[source_of(name, layers)]
        tensor.copy_(source)
    return InitialisationPlan(layers, {}, {}, {})


def source_of(name: str, layers: Mapping[str, str]) -> str:
    """The name of the teacher's tensor that a student's tensor is a copy of."""
    block = next((block for block in layers if name.startswith(f"{block}.")), None)
    return name if block is None else layers[block] + name.removeprefix(block)
