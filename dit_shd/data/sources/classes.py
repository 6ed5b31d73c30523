"""Class names as numbers, in the same way for folders, tables and label files."""

import unicodedata
from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from dit_shd.core.errors import UserError
from dit_shd.core.names import NAMED, counted, printable
from dit_shd.data.sources.base import checked_labels

BY_TEXT, BY_PLACE = "classes are in the order of text", "labels are places in the order of the classes"
"""How remarks on the numbers of classes begin."""


def ordered(names: Collection[str], where: str) -> tuple[tuple[str, ...], list[str]]:
    """Class names in the order of their labels (numerical if all are numbers), and remarks for the user.

    Raises:
        UserError: Two names that are the same number.
    """
    numbers = {name: int(name) for name in names if name.isascii() and name.isdecimal() and len(name) < 19}
    notes = _look_alike(names)
    if not names or len(numbers) < len(names):
        by_text = sorted(names)
        if [name for name in by_text if name in numbers] != sorted(numbers, key=lambda name: numbers[name]):
            text = next(name for name in by_text if name not in numbers)
            notes.append(f"{BY_TEXT}, 10 before 2: not all are numbers ({printable(text)})")
        return tuple(by_text), notes
    by_number = sorted(names, key=lambda name: (numbers[name], name))
    for one, other in pairwise(by_number):
        if numbers[one] == numbers[other]:
            raise UserError(
                f"images: '{where}': wanted classes of different numbers, found {one} and {other}; rename one of them"
            )
    moved = next(((name, label) for label, name in enumerate(by_number) if numbers[name] != label), None)
    if moved:
        notes.append(f"{BY_PLACE}, not their numbers: {moved[0]} is label {moved[1]}")
    return tuple(by_number), notes


def from_names(names: Sequence[str], where: str) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Labels int64 [n] of one class name for each image, the classes, and notes."""
    classes, notes = ordered(set(names), where)
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


def _look_alike(names: Collection[str]) -> list[str]:
    """Names that differ only by case or by the encoding of accents, which other systems treat as equal."""
    alike = defaultdict(list)
    for name in sorted(names):
        alike[unicodedata.normalize("NFC", name).casefold()].append(name)
    pairs = [" and ".join(map(printable, group)) for group in alike.values() if len(group) > 1]
    more = ", ..." if len(pairs) > NAMED else ""
    return (
        [f"classes whose names hardly differ are classes of their own: {', '.join(pairs[:NAMED])}{more}"]
        if pairs
        else []
    )
