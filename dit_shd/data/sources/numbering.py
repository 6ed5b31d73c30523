"""`classes={folder: index}`: classes with numbers of the user's choice, as a teacher's that has more of them."""

from collections.abc import Mapping

import numpy as np

from dit_shd.core.errors import UserError, one_line
from dit_shd.data.sources.base import ImageSource

MOST = 2**20
"""Classes."""


def renumber(source: ImageSource, classes: Mapping[str, int] | None) -> ImageSource:
    """The source with the number of each class as given; numbers that none has become classes without a name.

    Raises:
        UserError: a class that is not there or has images and no number, or a number twice or out of range.
    """
    if classes is None:
        return source
    there = {source.classes[i] for i in np.unique(source.labels)}
    strange, left_out = sorted(classes.keys() - set(source.classes)), sorted(there - classes.keys())
    if strange:
        raise UserError(
            f"classes: there is no class '{one_line(strange[0])}' among the images'; there is {_listed(there)}"
        )
    if left_out:
        raise UserError(f"classes: wanted a number for each class, found none for {_listed(left_out)}")
    numbers = list(classes.values())
    if len(set(numbers)) < len(numbers):
        twice = next(number for number in numbers if numbers.count(number) > 1)
        raise UserError(f"classes: wanted a number of its own for each class, found {twice} twice")
    if not numbers or not 0 <= min(numbers) <= max(numbers) < MOST:
        raise UserError(f"classes: wanted numbers from 0 to {MOST - 1}, found {numbers or 'none'}")
    names = [""] * (max(numbers) + 1)
    for name, number in classes.items():
        names[number] = name
    source.labels = np.array([classes.get(name, 0) for name in source.classes], np.int64)[source.labels]
    source.classes = tuple(names)
    return source


def _listed(names: set[str] | list[str]) -> str:
    shown = sorted(names)[:8]
    return ", ".join(f"'{one_line(name)}'" for name in shown) + (", ..." if len(names) > len(shown) else "")
