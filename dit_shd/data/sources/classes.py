"""Class names as numbers, in the same way for folders, tables and label files."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dit_shd.core.errors import UserError
from dit_shd.core.names import counted
from dit_shd.data.class_order import ordered
from dit_shd.data.sources.base import checked_labels


def from_names(names: Sequence[str], where: str) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Labels int64 [n] of one class name for each image, the classes, and notes."""
    classes, notes = ordered(set(names), f"images: '{where}'")
    number = {name: label for label, name in enumerate(classes)}
    labels = np.fromiter((number[name] for name in names), np.int64, len(names))
    return *checked_labels(labels, classes, where), notes


def from_values(
    values: Sequence[Any], classes: tuple[str, ...] | None, where: str
) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Labels int64 [n] of the values of a table or a label file, the classes, and notes.

    Args:
        values: Whole numbers or texts, one for each image.
        classes: Names of the numbers, if they are known.
        where: The source, for errors.

    Raises:
        UserError: Values of other types, or numbers beyond the names.
    """
    if len(values) and all(isinstance(value, str) for value in values):
        return from_names(values, where)
    if not all(type(value) is int and -(2**31) <= value < 2**31 for value in values):
        types = ", ".join(sorted({type(value).__name__ for value in values}))
        raise UserError(f"images: '{where}': wanted whole numbers or texts as labels throughout, found {types}")
    labels, names = checked_labels(np.array(values, dtype=np.int64), classes, where)
    return labels, names, unused(labels, names)


def unused(labels: np.ndarray, names: Sequence[str]) -> list[str]:
    """A note on classes that have no image, as class 0 of labels that begin at 1."""
    missing = [name for name, count in zip(names, np.bincount(labels, minlength=len(names))) if not count]
    return [f"classes without an image: {counted(missing)} of {len(names)}"] if missing else []
