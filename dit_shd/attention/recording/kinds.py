"""Which kind of a forward it is: what has been seen of a model holds for forwards of the same kind."""

from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from typing import cast

from torch import Tensor

from dit_shd.attention.recording.sites import Key
from dit_shd.attention.recording.structure import Number

MODES = 16
"""Kinds of forwards of a model that are told apart by the values of its inputs."""


def kind_of_forward(
    known: Collection[Key], door: str, inputs: Mapping[str, object], training: bool, structure: Number
) -> Key:
    """What has to be the same: the method, which inputs are given, the mode, the modules.

    Of inputs that are names (`"image"`) or of an enumeration, which choose among modules, the values, too; of mappings
    what they hold; and which inputs are one. An empty sequence is not given. Ever other names (of samples, say) choose
    nothing.

    Args:
        known: The kinds that have been seen.
        door: The method that is called.
        inputs: By name.
        training: The model's mode.
        structure: Its modules.
    """
    names: dict[int, str] = {}
    given = frozenset(part for name, value in inputs.items() for part in _given(name, value, names))
    plain: Key = (door, frozenset((name, same) for name, same, _ in given), training, structure)
    key: Key = (door, given, training, structure)
    return key if key in known or (plain not in known and len(known) < MODES) else plain


def _given(name: str, value: object, names: dict[int, str]) -> Iterator[tuple[str, str, object]]:
    """What is given: its name, that by which the same tensor is given first, and which it is of a few.

    Args:
        name: By which it is given.
        value: What it is.
        names: By which tensors were given before.
    """
    if isinstance(value, Mapping):
        for key, each in cast("Mapping[object, object]", value).items():
            yield from _given(f"{name}.{key}", each, names)
    elif isinstance(value, Tensor):
        if value.numel():
            yield name, names.setdefault(id(value), name), None
    elif value is not None and value is not False:
        chooses = isinstance(value, Enum) or (isinstance(value, str) and value.isidentifier())
        yield name, name, value if chooses else None
