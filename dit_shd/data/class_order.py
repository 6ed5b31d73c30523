"""Class names in the order of their labels, the same for every source of images."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

from dit_shd.core.errors import UserError
from dit_shd.core.names import NAMED, printable

BY_TEXT, BY_PLACE = "classes are in the order of text", "labels are places in the order of the classes"
"""How remarks on the numbers of classes begin."""


def ordered(names: Collection[str], where: str) -> tuple[tuple[str, ...], list[str]]:
    """Class names in the order of their labels (numerical if all are numbers), and remarks for the user.

    Args:
        names: Each once.
        where: Whose they are, for the error.

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
                f"{where}: wanted classes of different numbers, found {one} and {other}; rename one of them"
            )
    moved = next(((name, label) for label, name in enumerate(by_number) if numbers[name] != label), None)
    if moved:
        notes.append(f"{BY_PLACE}, not their numbers: {moved[0]} is label {moved[1]}")
    return tuple(by_number), notes


def other_orders(names: Sequence[str | None] | None) -> dict[str, list[int]]:
    """The places of classes in the orders of other programs, by program; none where their order is this one.

    A classifier that says no names may have any of these orders.

    Args:
        names: In the order of their labels; None, or None and "" among them, where they are not known.
    """
    known = [name for name in names or () if name]
    if not known or len(known) < len(names or ()):
        return {}
    orders = {"torchvision's ImageFolder": sorted(known), "timm": sorted(known, key=_natural)}
    return {program: [order.index(name) for name in known] for program, order in orders.items() if order != known}


def in_another_order(names: Sequence[str | None] | None, places: Sequence[int]) -> str:
    """The first class that has another label in another order, in words.

    Args:
        names: In the order of their labels.
        places: The places of the classes in the other order.
    """
    first, place = next((label, place) for label, place in enumerate(places) if label != place)
    return f"'{printable(str((names or ())[first]))}' is class {first} here, {place} there"


def _natural(name: str) -> list[Any]:
    """By what timm orders: text and numbers in turn, whatever the letters' case."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name.lower()))]


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
