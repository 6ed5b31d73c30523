"""A student that begins with its teacher's weights.

Layers are picked by the layer map; heads are picked or merged by the groups and weights of the squeeze; channels are
picked by what they tell on calibration batches; and every linear map that loses inputs is refitted to those that stay.
Equal depth, heads and widths give a copy.

structure.py  which tensors share channels        importance.py  which of those are kept
heads.py      a head out of a group of heads      regression.py  a map refitted to what it still reads
moments.py    what the teacher does on batches    transfer.py    the new weights; plan.py says what was decided
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from dit_shd.core.config import option
from dit_shd.core.errors import UserError
from dit_shd.core.rng import Draws
from dit_shd.distillation.initialisation import structure
from dit_shd.distillation.initialisation.plan import InitialisationPlan
from dit_shd.distillation.initialisation.transfer import Transfer
from dit_shd.distillation.layer_map import layer_map
from dit_shd.distillation.losses import Loss
from dit_shd.distillation.losses.shd import SHD
from dit_shd.models.prediction import prediction_of
from dit_shd.squeezing.plans import contiguous
from dit_shd.tasks import Batch, Task

AT_ONCE = 32
"""Calibration images of one forward of the teacher."""
_log = logging.getLogger("dit_shd")


@dataclass(frozen=True)
class Initialisation:
    """How a new run's student begins."""

    weights: Literal["random", "teacher"] = option("random", "begin with random weights, or with the teacher's")
    layers: str | dict[str, str] | None = option(
        None, "sections, proportional or {student layer: teacher layer}; empty: as the shd loss has it"
    )
    heads: Literal["pick", "merge"] = option("pick", "of a group of heads take the heaviest one, or merge them")
    channels: Literal["importance", "first"] = option("importance", "of channels keep the most telling, or the first")
    calibration: int = option(
        256, "images that importance and weights are measured on; 0: from the weights alone", range=(0, 1e6)
    )


def initialise(
    task: Task[Any],
    student: Any,
    teacher: Any,
    batches: Sequence[Batch],
    options: Initialisation = Initialisation(weights="teacher"),
    shd: SHD | None = None,
) -> InitialisationPlan:
    """Overwrite a student's weights by what follows from its teacher's; a function of its arguments alone.

    The teacher runs over the batches twice. Second moments of what the cut layers read are held in float64: about 4 GB
    on the models' device for XL/2 into S/2.

    Args:
        student, teacher: two MDTv2s or two DiTs on one device. batches: of the run's data, plain and masked.
        shd: whose layer map, head groups and method of squeezing are followed (SHD() if there is none).

    Raises:
        UserError: models that do not fit together.
    """
    shd = SHD() if shd is None else shd
    _comparable(student, teacher)
    layers = _layers(student, teacher, options, shd)
    h, g = teacher.config.num_attention_heads, student.config.num_attention_heads
    groups = {block: shd.squeezer.groups(f"{block}.attn", h, g) for block in layers}
    _narrow_enough(student, teacher, layers)
    transfer = Transfer(student, teacher, layers, groups, options.heads == "merge", options.channels == "importance")
    return transfer.run(task, batches, shd.squeezer)


def check(options: Initialisation, losses: Iterable[Loss], student: nn.Module, teacher: nn.Module | None) -> None:
    """Whether a student that learns by these losses can begin as the options say.

    Raises:
        UserError: no teacher, or one that does not fit.
    """
    if options.weights == "random":
        return
    if teacher is None:
        raise UserError("initialisation.weights: teacher was asked for, but the run has none; give teacher=...")
    shd = shd_of(losses)
    _comparable(student, teacher)
    _narrow_enough(student, teacher, _layers(student, teacher, options, shd))


def moment_batches(task: Task[Any], seed: int, batch_size: int, images: int) -> Iterator[Batch]:
    """The first images of the run in all passes, however many processes there are."""
    for start in range(0, images, AT_ONCE):
        step, first = divmod(start, batch_size)
        last = min(first + AT_ONCE, first + images - start, batch_size)
        yield from task.draw(Draws(seed, step, range(first, last), batch_size))


def shd_of(losses: Iterable[Loss | nn.Module]) -> SHD:
    return next((loss for loss in losses if isinstance(loss, SHD)), SHD())


def _layers(student: nn.Module, teacher: nn.Module, options: Initialisation, shd: SHD) -> dict[str, str]:
    """Student block -> teacher block. Side blocks, which plain passes do not run, are a pair of their own."""
    theirs, ours = ([f"{block}.attn" for block in structure.blocks(model)] for model in (teacher, student))
    how: Any = shd.layers if options.layers is None else options.layers
    named = isinstance(how, dict)
    pairs = layer_map(theirs, ours, how) if named else {}
    if not named or options.layers is None:  # the layers that the loss leaves out begin with something, too
        rule = "sections" if named else how
        side = [[name for name in names if name.startswith(structure.SIDE)] for names in (theirs, ours)]
        plain = [[name for name in names if name not in left] for names, left in zip((theirs, ours), side)]
        pairs = layer_map(plain[0], plain[1], rule) | layer_map(side[0], side[1]) | pairs
    return {layer.removesuffix(".attn"): source.removesuffix(".attn") for layer, source in pairs.items()}


def _comparable(student: nn.Module, teacher: nn.Module) -> None:
    """Two models of one family whose parts are known, with the same tokens, channels and classes."""
    for role, model in (("student", student), ("teacher", teacher)):
        if not structure.known(model.state_dict()):
            raise UserError(
                f"initialisation: only an MDTv2 or a DiT of ours can give or take weights, the {role} is a "
                f"{type(model).__name__}; use initialisation.weights=random"
            )
    learned, taught = prediction_of(student), prediction_of(teacher)
    if learned != taught:
        raise UserError(
            f"initialisation: the student predicts {learned} and its teacher {taught}: the same weights mean something "
            f"else; set student.prediction={taught}"
        )
    ours, theirs = structure.fixed(student), structure.fixed(teacher)
    for part in sorted(ours.keys() | theirs.keys()):
        if ours.get(part) != theirs.get(part):
            raise UserError(
                f"initialisation: {part} has {ours.get(part)} in the student and {theirs.get(part)} in the teacher; "
                "family, tokens, patches, classes and latent channels must be the same"
            )


def _narrow_enough(student: Any, teacher: Any, layers: dict[str, str]) -> None:
    theirs = structure.widths(teacher, layers)
    for space, count in structure.widths(student, {block: block for block in layers}).items():
        if count > theirs[space]:
            raise UserError(
                f"initialisation: the student has {count} channels in {space}, the teacher only {theirs[space]}; "
                "channels can be left out, not made up"
            )
    heads = teacher.config.num_attention_heads, student.config.num_attention_heads
    contiguous(*heads)
