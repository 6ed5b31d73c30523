"""`classes={folder: index}`: class numbers of the user's choice, such as those of a teacher with more classes."""

from collections.abc import Mapping

import numpy as np

from dit_shd.core.errors import UserError, one_line
from dit_shd.data.class_order import BY_PLACE, BY_TEXT
from dit_shd.data.sources.base import ImageSource

MOST = 2**20
"""Largest number of classes."""


def renumber(source: ImageSource, classes: Mapping[str, int] | None) -> ImageSource:
    """Give each class of a source the number that `classes` has for it; unused numbers are classes without a name.

    Raises:
        UserError: An unknown class, a class with images and no number, or a number twice or out of range.
    """
    if classes is None:
        return source
    if len(set(source.classes)) < len(source.classes):
        twice = next(name for name in source.classes if source.classes.count(name) > 1)
        raise UserError(f"classes: wanted images whose classes have different names, found '{one_line(twice)}' twice")
    present = {source.classes[i] for i in np.unique(source.labels)}
    unknown, left_out = sorted(classes.keys() - set(source.classes)), sorted(present - classes.keys())
    if unknown:
        raise UserError(
            f"classes: there is no class '{one_line(unknown[0])}' among the images'; there is {_listed(present)}"
        )
    if left_out:
        raise UserError(f"classes: wanted a number for each class, found none for {_listed(left_out)}")
    numbers = list(classes.values())
    if len(set(numbers)) < len(numbers):
        twice = next(number for number in numbers if numbers.count(number) > 1)
        raise UserError(f"classes: wanted a different number for each class, found {twice} twice")
    if not numbers or not 0 <= min(numbers) <= max(numbers) < MOST:
        raise UserError(f"classes: wanted numbers from 0 to {MOST - 1}, found {numbers or 'none'}")
    names = [""] * (max(numbers) + 1)
    for name, number in classes.items():
        names[number] = name
    source.labels = np.array([classes.get(name, 0) for name in source.classes], np.int64)[source.labels]
    source.classes = tuple(names)
    notes = [note for note in source.notes if not note.startswith((BY_TEXT, BY_PLACE))]  # of other numbers
    named = len(classes)
    source.notes = [*notes, *([f"classes with a name: {named} of {len(names)}"] if named < len(names) else [])]
    return source


def _listed(names: set[str] | list[str]) -> str:
    shown = sorted(names)[:8]
    return ", ".join(f"'{one_line(name)}'" for name in shown) + (", ..." if len(names) > len(shown) else "")
