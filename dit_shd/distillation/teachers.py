"""The teachers of a run, by name: a run has one as a rule, and two or more where losses read different ones."""

from collections.abc import Mapping, Sequence

from torch import nn

from dit_shd.core.errors import UserError
from dit_shd.distillation.losses import Loss

TEACHER = "teacher"
"""What the only teacher of a run is called."""
Teachers = Mapping[str, nn.Module]
"""Frozen models by name; the first is the one that a loss reads which names none."""


def by_name(teachers: nn.Module | Teachers | None) -> dict[str, nn.Module]:
    """Teachers as a mapping, from a mapping, a single model or none."""
    if teachers is None:
        return {}
    return {TEACHER: teachers} if isinstance(teachers, nn.Module) else dict(teachers)


def role(name: str) -> str:
    """How messages call a teacher.

    >>> role("teacher"), role("llama")
    ('teacher', 'teacher llama')
    """
    return TEACHER if name == TEACHER else f"{TEACHER} {name}"


def chosen(wanted: str | Sequence[str] | None, names: Mapping[str, object], where: str) -> list[str]:
    """The names of the teachers that a loss reads: one, or those whose outputs are averaged.

    Args:
        wanted: As the loss names them; None for the first.
        names: Those that exist, by name.
        where: The loss, for the error.

    Raises:
        UserError: No such teacher, or none at all.
    """
    if not names:
        raise UserError(f"{where}: needs a teacher, and none was given")
    if wanted is None:
        return [next(iter(names))]
    several = [wanted] if isinstance(wanted, str) else list(wanted)
    for name in several:
        if name not in names:
            raise UserError(f"{where}: teacher: wanted one of {', '.join(names)}, found '{name}'")
        if several.count(name) > 1:
            raise UserError(f"{where}: teacher: each counts the same in their mean, and '{name}' is named twice")
    return several


def read_teachers(losses: Mapping[str, Loss], names: Mapping[str, object]) -> list[str]:
    """The names of the teachers that losses read, without repetition.

    Args:
        losses: The losses, by name.
        names: The teachers that exist, by name.

    Raises:
        UserError: A loss names a teacher that does not exist.
    """
    read = [chosen(loss.teacher, names, name) for name, loss in losses.items() if loss.reads_teacher]
    return list(dict.fromkeys(name for several in read for name in several))
