"""A student made of some blocks of its teacher, at equal width: any model whose config has its number of blocks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dit_shd.core.errors import UserError
from dit_shd.distillation.kept import KeptPlan
from dit_shd.models.blocks import named_blocks


def student_of(teacher: nn.Module, plan: KeptPlan) -> nn.Module:
    """A model of the teacher's class with as many blocks as the plan has, and their weights.

    Args:
        teacher: Of diffusers or dit_shd.
        plan: Which blocks it keeps; lists of blocks that it does not name are kept whole.

    Raises:
        UserError: No key of its config is its number of blocks, or the blocks do not fit.
    """
    options: dict[str, Any] = dict(teacher.config)  # type: ignore[call-overload]
    lists = {name.rpartition(".")[0] for name in plan.weights}
    for of_list in lists:
        count = sum(name.rpartition(".")[0] == of_list for name in named_blocks(teacher))
        keys = [key for key, value in options.items() if value == count and "layers" in key and isinstance(value, int)]
        if len(keys) > 1 and of_list.startswith("single"):
            keys = [key for key in keys if "single" in key]
        elif len(keys) > 1:
            keys = [key for key in keys if "single" not in key]
        if len(keys) != 1:
            raise UserError(
                f"{type(teacher).__name__}: no key of its config is the number of {of_list} ({count}); build the "
                "student by hand and give it the weights by copy_kept(student, teacher, plan)"
            )
        options[keys[0]] = sum(name.rpartition(".")[0] == of_list for name in plan.weights)
    cls: Any = type(teacher)
    student: nn.Module = cls.from_config(options)
    copy_kept(student, teacher, plan)
    return student


@torch.no_grad()
def copy_kept(student: nn.Module, teacher: nn.Module, plan: KeptPlan) -> dict[str, str]:
    """Overwrite a student's weights by those of the blocks that it keeps, and of all that is outside of them.

    Where a block has other tensors than the one it comes from (SD3's last, which gives no text), it comes from the
    first of its interval that has the same.

    Args:
        student: Of fewer blocks.
        teacher: Of the same widths.
        plan: Which blocks are kept.

    Returns:
        Student block -> the teacher's block that it was given.

    Raises:
        UserError: Tensors that differ in name or shape.
    """
    sources, tensors = check_kept(student, teacher, plan)
    teacher_state = teacher.state_dict()
    student.load_state_dict(
        {name: teacher_state[source].to(student.state_dict()[name]) for name, source in tensors.items()}
    )
    return sources


def check_kept(student: nn.Module, teacher: nn.Module, plan: KeptPlan) -> tuple[dict[str, str], dict[str, str]]:
    """What copy_kept does, without doing it.

    Args:
        student: Of fewer blocks.
        teacher: Of the same widths.
        plan: Which blocks are kept.

    Returns:
        Student block -> teacher's block, and student tensor -> teacher's tensor.

    Raises:
        UserError: Tensors that differ in name or shape.
    """
    state, teacher_state = student.state_dict(), teacher.state_dict()
    names = list(named_blocks(teacher))
    sources = {block: _source(block, state, teacher_state, names, plan) for block in named_blocks(student)}
    tensors: dict[str, str] = {}
    for name, tensor in state.items():
        block = next((b for b in sources if name.startswith(f"{b}.")), None)
        source = name if block is None else sources[block] + name.removeprefix(block)
        if source not in teacher_state or teacher_state[source].shape != tensor.shape:
            shape = "none" if source not in teacher_state else list(teacher_state[source].shape)
            raise UserError(f"kept: {name} is {list(tensor.shape)} in the student, {source} of the teacher is {shape}")
        tensors[name] = source
    return sources, tensors


def _source(
    block: str, state: dict[str, Tensor], teacher_state: dict[str, Tensor], names: Sequence[str], plan: KeptPlan
) -> str:
    """The teacher's block that a block of the student comes from."""
    first, last = plan.weights.get(block, block), plan.layers.get(block, block)
    if first not in names or last not in names:
        raise UserError(f"kept: the teacher has no block {first if first not in names else last}")
    shapes = _shapes(state, block)
    interval = names[names.index(first) : names.index(last) + 1]
    source = next((name for name in interval if _shapes(teacher_state, name) == shapes), None)
    if source is None:
        raise UserError(
            f"kept: {block} of the student has other tensors than {first} of the teacher (equal widths and heads, and "
            "the same family, are needed)"
        )
    return source


def _shapes(state: dict[str, Tensor], block: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a block's tensors by their names in it."""
    prefix = f"{block}."
    return {name.removeprefix(prefix): tuple(x.shape) for name, x in state.items() if name.startswith(prefix)}
