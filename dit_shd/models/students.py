"""The config of a student like its teacher, but smaller: sizes that follow from others follow."""

from collections.abc import Mapping, Sequence
from typing import Any

from dit_shd.core.errors import UserError, unknown

HEADS = ("num_attention_heads", "n_heads", "num_heads")
LAYERS = (
    "num_layers",
    "n_layers",
    "num_single_layers",
    "num_mmdit_layers",
    "num_single_dit_layers",
    "num_refiner_layers",
    "n_refiner_layers",
    "depth",
)
WIDTH = ("attention_head_dim",)
FOLLOW_WIDTH = ("caption_projection_dim", "cross_attention_dim", "hidden_size", "dim")
"""Sizes that are the width in many classes: where they are the teacher's, they become the student's."""
KEEP_RATIO = ("ffn_dim", "ff_dim", "ffn_hidden_size")
"""Widths of feed-forward layers, which keep their ratio to the width."""
FOLLOW_HEADS = ("num_kv_heads", "n_kv_heads", "num_cross_attention_heads")
"""Numbers of heads that keep their ratio to the heads."""
OF_LAYERS = ("dual_attention_layers",)
"""Lists of numbers of layers: the student's are those that are made of them."""
STACKS, OF_BLOCKS = ("num_layers", "num_single_layers"), ("llama_layers",)
"""Lists with an entry for each block of two stacks, one after the other: the student's are those of its blocks."""


def smaller(sizes: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A config with changes, and with what follows from them.

    Args:
        sizes: The teacher's.
        changes: Keys of it with the student's values.

    Raises:
        UserError: A key that the class does not have, or a size beyond the teacher's.
    """
    stacks = [name for name in LAYERS if type(sizes.get(name)) is int]  # of several, as FLUX has, one may be empty
    for key, value in changes.items():
        if key not in sizes or key.startswith("_"):
            raise unknown("student", key, [name for name in sizes if not name.startswith("_")])
        most, least = sizes[key], 0 if key in stacks and len(stacks) > 1 else 1
        if key not in (*HEADS, *LAYERS, *WIDTH, *FOLLOW_WIDTH, *FOLLOW_HEADS) or type(most) is not int:
            continue
        if type(value) is not int or value < least:
            raise UserError(f"student.{key}: wanted a whole number of {least} or more, found {value}")
        if value > most:
            raise UserError(f"student.{key}: wanted at most the teacher's {most}, found {value}")
    student = {**sizes, **changes}
    key = next((name for name in HEADS if name in sizes), None)
    if key is None:
        return student
    before, after = sizes[key], student[key]
    for name in FOLLOW_HEADS:
        if isinstance(sizes.get(name), int) and name not in changes:
            student[name] = _ratio(sizes[name], after, before, f"student.{name}")
    width = before * _head_width(sizes, before)
    for name in FOLLOW_WIDTH:
        if sizes.get(name) == width and name not in changes:
            student[name] = after * _head_width(student, before)
    for name in KEEP_RATIO:
        if width and isinstance(sizes.get(name), int) and name not in changes:
            student[name] = max(1, sizes[name] * after * _head_width(student, before) // width)
    before_depth = next((sizes[name] for name in LAYERS[:2] if isinstance(sizes.get(name), int)), 0)
    depth = next((student[name] for name in LAYERS[:2] if isinstance(student.get(name), int)), None)
    for name in OF_LAYERS:
        if depth is not None and isinstance(sizes.get(name), (list, tuple)) and name not in changes:
            student[name] = [number for number in range(depth) if _source(number, depth, before_depth) in sizes[name]]
    for name in OF_BLOCKS:
        if isinstance(sizes.get(name), (list, tuple)) and name not in changes:
            student[name] = _of_blocks(sizes[name], [(sizes[stack], student[stack]) for stack in STACKS])
    return student


def _head_width(sizes: Mapping[str, Any], heads: int) -> int:
    """Width of a head: as it is named, or the model's width by its heads."""
    if isinstance(sizes.get("attention_head_dim"), int):
        return sizes["attention_head_dim"]
    width = next((sizes[name] for name in FOLLOW_WIDTH[2:] if isinstance(sizes.get(name), int)), 0)
    return width // heads


def _of_blocks(values: Sequence[Any], depths: Sequence[tuple[int, int]]) -> list[Any]:
    """The entries of a student's blocks in stacks of some depths before and after."""
    kept, first = [], 0
    for before, after in depths:
        kept += [values[first + _source(number, after, before)] for number in range(after)]
        first += before
    return kept


def _source(number: int, depth: int, before: int) -> int:
    """The teacher's layer that a student's is made of: evenly spaced, the last of the last."""
    return -(-(number + 1) * before // depth) - 1


def _ratio(count: int, after: int, before: int, where: str) -> int:
    if count * after % before:
        raise UserError(f"{where}: {count} of {before} heads are no whole number of {after}; name it")
    return count * after // before
