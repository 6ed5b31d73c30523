"""Names of classes, from the data into the student, and whether a teacher's are the same.

A model's config holds `class_names`: of each class the name, "" for one that has none but its number, None for one that
its training never saw. Data have names too where folders, tables or latents.json give them.
"""

import difflib
import inspect
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from torch import nn

from dit_shd.core.errors import UserError, one_line
from dit_shd.data.datasets import Dataset
from dit_shd.models.shape import shape_of

Names = Sequence[str | None]
WORDNET = re.compile(r"n\d{8}")
SHOWN = 8
"""Classes that are named in a line."""


def learned(dataset: Dataset, classes: int) -> list[str | None] | None:
    """`class_names` of a model of some classes that learns from the data; None where all are seen and have no name."""
    seen = set(np.unique(dataset.labels()).tolist())
    if dataset.class_names is None and len(seen) == classes:
        return None
    names = dict(enumerate(dataset.class_names or ()))
    return [names.get(i, "") if i in seen else None for i in range(classes)]


def record(model: nn.Module, names: Names | None) -> None:
    """Write them into a model's config, if its family has a place for them; they are saved with it."""
    if names is not None and "class_names" in inspect.signature(type(model).__init__).parameters:
        model.register_to_config(class_names=list(names))  # type: ignore[operator]


def missing(dataset: Dataset, classes: int) -> list[str]:
    """A line for the log where the data have not all the classes of a student; else none."""
    seen = np.unique(dataset.labels()).tolist()
    if len(seen) >= classes:
        return []
    return [
        f"classes: the student knows {classes}, the data has images of {len(seen)} ({_listed(dataset, seen)}); only "
        "these are sampled later"
    ]


def _listed(dataset: Dataset, classes: Sequence[int]) -> str:
    named = dataset.class_names or ()
    words = [f"{i} '{one_line(named[i])}'" if i < len(named) and named[i] else str(i) for i in classes[:SHOWN]]
    return ", ".join(words) + (", ..." if len(classes) > SHOWN else "")


def compare(teacher: nn.Module, dataset: Dataset) -> tuple[str, bool]:
    """How the data's classes map to the teacher's, in words; and whether the names, where there are any, agree."""
    seen = np.unique(dataset.labels()).tolist()
    teacher_names: Names | None = shape_of(teacher).class_names
    unseen = [i for i in seen if teacher_names is not None and (i >= len(teacher_names) or teacher_names[i] is None)]
    if unseen:
        return f"the teacher never saw the data's classes {_listed(dataset, unseen)}", False
    data_names = {i: dataset.class_names[i] for i in seen} if dataset.class_names is not None else {}
    wordnet = bool(data_names) and all(map(WORDNET.fullmatch, data_names.values()))
    if teacher_names is None and shape_of(teacher).classes == 1000 and wordnet:
        teacher_names = _imagenet()
    if not _comparable(data_names, teacher_names):
        reason = _unnamed(data_names, teacher_names)
        return f"{reason}: label i is taught as the teacher's class i ({_listed(dataset, seen)})", True
    assert teacher_names is not None
    index = {name: i for i, name in enumerate(teacher_names) if name}
    wrong = [i for i, name in data_names.items() if index.get(name) != i]
    if not wrong:
        return f"the data's {len(seen)} classes are the teacher's by name", True
    return _mismatch(data_names, index, wrong, teacher_names), False


def _comparable(data_names: Mapping[int, str], teacher_names: Names | None) -> bool:
    """Both have names; numbers are names among numbers alone, or where both have some of them."""
    if not data_names or not all(data_names.values()) or teacher_names is None or not any(teacher_names):
        return False
    known = {name for name in teacher_names if name}
    return _numbers(data_names.values()) == _numbers(known) or not known.isdisjoint(data_names.values())


def _numbers(names: Iterable[str]) -> bool:
    return all(name.isdecimal() for name in names)


def _unnamed(data_names: Mapping[int, str], teacher_names: Names | None) -> str:
    if not data_names or not all(data_names.values()):
        return "the data's classes have no names"
    if teacher_names is None or not any(teacher_names):
        return "the teacher's classes have no names"
    return "the classes have numbers for names in one of teacher and data"


def _mismatch(
    data_names: Mapping[int, str], index: Mapping[str, int], wrong: Sequence[int], teacher_names: Names
) -> str:
    first = wrong[0]
    place = index.get(data_names[first])
    what = f"its class {place}" if place is not None else "none of its classes"
    name = teacher_names[first] if first < len(teacher_names) else None
    there = f"'{one_line(name)}'" if name else "no such class"
    message = (
        f"{len(wrong)} of the data's {len(data_names)} classes are others in the teacher: class {first} is "
        f"'{one_line(data_names[first])}' in the data, which is {what}, and {there} in the teacher"
    )
    if all(name in index for name in data_names.values()):
        pairs = [f"{one_line(name)}: {index[name]}" for name in data_names.values()]
        shown = ", ".join(pairs[:SHOWN]) + (", ..." if len(pairs) > SHOWN else "")
        message += f"; dit-shd encode classes='{{{shown}}}' keeps the teacher's numbers"
    return message


def numbers(names: Sequence[str], model: nn.Module) -> list[int]:
    """The classes of a model by their names, in upper or lower case.

    Of a name of several words between commas each names the class, too (tench, Tinca tinca), but for those that are
    names themselves. A model of 1,000 classes without names has ImageNet's: WordNet ids, and each synonym of its
    descriptions.

    Args:
        names: What is looked for.
        model: Class-conditional.

    Raises:
        UserError: The model has no names, no class of this name, or several.
    """
    shape = shape_of(model)
    classes: dict[str, set[int]] = {}
    wholes = {name.lower() for name in shape.class_names or () if name}
    known: list[Sequence[str]] = [[name, *_parts(name, wholes)] if name else [] for name in shape.class_names or ()]
    if not any(known) and shape.classes == 1000:
        known = [[wordnet, *text.split(", ")] for wordnet, text in zip(_imagenet(), _imagenet_words())]
    for number, words in enumerate(known):
        for word in words:
            classes.setdefault(word.lower(), set()).add(number)
    if not classes:
        raise UserError(
            f"labels: wanted random, balanced or classes as 3,3,7, found '{one_line(names[0])}', and the model's "
            "classes have no names"
        )
    for name in names:
        if name.lower() not in classes:
            near = [one_line(known) for known in difflib.get_close_matches(name.lower(), classes, 3)]
            some = ", ".join(map(one_line, list(classes)[:SHOWN])) + (", ..." if len(classes) > SHOWN else "")
            advice = f"did you mean {' or '.join(near)}?" if near else f"the model has {some}"
            raise UserError(
                f"labels: wanted random, balanced, or numbers or names of classes, found '{one_line(name)}'; {advice}"
            )
        if len(classes[name.lower()]) > 1:
            several = ", ".join(map(str, sorted(classes[name.lower()])))
            raise UserError(f"labels: several classes are named '{one_line(name)}': {several}; give a number")
    return [next(iter(classes[name.lower()])) for name in names]


def _parts(name: str, wholes: Collection[str]) -> list[str]:
    parts = [part.strip() for part in name.split(",")] if "," in name else []
    return [part for part in parts if part and part.lower() not in wholes]


def places(labels: Iterable[int], model: nn.Module) -> list[str]:
    """A line where classes are given by their places and have other numbers for names; else none.

    Args:
        labels: The classes as they were given.
        model: Class-conditional.
    """
    names = dict(enumerate(shape_of(model).class_names or ()))
    other = next((i for i in labels if (names.get(i) or "").isdecimal() and int(names[i] or 0) != i), None)
    if other is None:
        return []
    place = next((i for i, name in names.items() if name == str(other)), None)
    there = f"; the class called '{other}' is {place}" if place is not None else ""
    words = "labels: numbers are places in the order of the classes"
    return [f"{words}: {other} is the class called '{names[other]}'{there}"]


def _imagenet() -> list[str]:
    """The WordNet ids of ImageNet-1k in the order of the public checkpoints' classes: sorted as texts."""
    from timm.data.imagenet_info import ImageNetInfo

    return list(ImageNetInfo("imagenet-1k").label_names())


def _imagenet_words() -> list[str]:
    """The descriptions of ImageNet-1k's classes, of synonyms."""
    from timm.data.imagenet_info import ImageNetInfo

    return list(ImageNetInfo("imagenet-1k").label_descriptions())
