"""Initialisation of a student with its teacher's weights.

Layers are selected by the layer map; of every space of channels some are kept, of every group of heads one, or they are
merged; and every linear map that loses inputs is refitted to those it keeps. Equal sizes give a copy.

axes.py       tensors that share channels (spaces.py)    selection.py   what is kept, and the first weights
layouts.py    where heads stand, by class                heads.py       heads mixed from others, by their moments
depth.py      layers; a plan of kept blocks              refit.py       refitting each map to what the student gives it
folding.py    parts that the student does not have       plan.py        the decisions, for the user
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from dit_shd.core.config import option
from dit_shd.core.errors import UserError
from dit_shd.core.rng import Draws
from dit_shd.distillation.initialisation import depth
from dit_shd.distillation.initialisation.folding import left_out
from dit_shd.distillation.initialisation.moments import head_moments
from dit_shd.distillation.initialisation.plan import InitialisationPlan
from dit_shd.distillation.initialisation.refit import refit
from dit_shd.distillation.initialisation.selection import Selection
from dit_shd.distillation.kept import KeptPlan
from dit_shd.distillation.losses import Loss
from dit_shd.distillation.losses.shd import SHD
from dit_shd.models.language_model import kinds_of_attention
from dit_shd.models.prediction import prediction_of
from dit_shd.models.settings import by_depth, differing_settings, in_words
from dit_shd.tasks import Batch, Task

AT_ONCE = 32
"""Calibration images in one forward of the teacher, at most."""
BY_NUMBER = ("time_text_embed.mod_proj",)
"""Buffers with a row for each number of a block's modulations: Chroma's."""


@dataclass(frozen=True)
class Initialisation:
    """How the student of a new run is initialised."""

    weights: Literal["random", "teacher"] = option("random", "random weights, or the teacher's")
    layers: str | dict[str, str] | None = option(
        None,
        "sections, proportional, kept:PLAN (of dit-shd depth) or {student layer: teacher layer}, other blocks by "
        "section; empty: as the shd loss has it",
    )
    heads: Literal["pick", "merge"] = option(
        "pick", "of a group of heads keep the one of largest weight, or merge them"
    )
    channels: Literal["importance", "first"] = option(
        "importance", "keep the heads and hidden units of the largest weights, or the first"
    )
    calibration: int = option(256, "images, prompts or texts to fit maps on; 0: use the weights alone", range=(0, 1e6))

    def __post_init__(self) -> None:
        if self.layers == "last":
            raise UserError(
                "initialisation.layers: wanted sections, proportional, kept:PLAN or {student layer: teacher layer}, "
                "found last, which is one layer"
            )


def initialise(
    task: Task[Any],
    student: nn.Module,
    teacher: nn.Module,
    batches: Sequence[Batch],
    options: Initialisation = Initialisation(weights="teacher"),
    shd: SHD | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> InitialisationPlan:
    """Overwrite a student's weights by weights from its teacher's; deterministic.

    Args:
        task: Predicts with the teacher.
        student: Of any class whose parts are known (axes.py).
        teacher: Of the same class, on the same device.
        batches: Of the run's data, plain and masked.
        options: Of the initialisation.
        shd: Loss whose layer map, groups and method of squeezing are used; SHD() for None.
        weights: The teacher's tensors, where it holds rounded ones, in fewer bits; None: its own.

    Returns:
        The plan: layers, heads and channels that were chosen.

    Raises:
        UserError: The models do not fit together.
    """
    shd = SHD() if shd is None else shd
    selection = _selection(student, teacher, options, shd, weights)
    if selection.mixed:
        groups = {space.module: selection.heads[space.module].groups for space in selection.mixed}
        sources = {name: depth.module_of(name, selection.layers) for name in groups}
        moments = head_moments(task.predict, teacher, batches, sources, groups, shd.squeezer)
        selection = replace(selection, moments=moments)
    plan = selection.run()
    if batches:
        refit(student, teacher, selection.cut_maps(), task.predict, batches)
    return plan


def check(options: Initialisation, losses: Iterable[Loss], student: nn.Module, teacher: nn.Module | None) -> None:
    """Check that the options apply to a run's models.

    Args:
        options: Of the initialisation.
        losses: Of the run, for the layer map and groups of SHD.
        student: Of the run.
        teacher: Of the run, if any.

    Raises:
        UserError: No teacher, or it does not fit.
    """
    if options.weights == "random":
        return
    if teacher is None:
        raise UserError("initialisation.weights: teacher was asked for, but the run has none; give teacher=...")
    _selection(student, teacher, options, shd_of(losses))


def remarks(
    options: Initialisation, losses: Iterable[Loss], student: nn.Module, teacher: nn.Module | None
) -> Iterator[str]:
    """A line for each way in which the student uses the weights that it begins with otherwise than its teacher.

    Args:
        options: Of the initialisation.
        losses: Of the run, for the layer map of SHD.
        student: Of the run, perhaps without weights.
        teacher: Of the run, if any, which check has found to fit.
    """
    if options.weights == "random" or teacher is None:
        return
    differing = differing_settings(student, teacher)
    if differing:
        yield f"under the student's settings its teacher's weights mean something else ({in_words(differing)})"
    layers = _sources(student, teacher, options, shd_of(losses))
    if lost := left_out(student, teacher, layers):
        yield (
            f"the student has no part for {len(lost)} of its teacher's tensors, and begins without what they do there "
            f"(first {lost[0]})"
        )
    if numbered := by_number(student, teacher):
        yield numbered
    yield from by_depth(student, layers)
    here, there = kinds_of_attention(student), kinds_of_attention(teacher)
    if here and there:
        sources = {block: there[layers[block]] for block in here}
        others = [block for block in here if here[block] != sources[block]]
        if others:
            yield (
                f"{len(others)} of the student's layers attend otherwise than those whose weights they take (first "
                f"{others[0]}: {here[others[0]]} here, {sources[others[0]]} of {layers[others[0]]}); "
                f"student.config.layer_types=[{','.join(sources.values())}] attends as they do"
            )


def by_number(student: nn.Module, teacher: nn.Module) -> str | None:
    """What is computed from the numbers of blocks, and so begins otherwise in a student of fewer; None: nothing is.

    That is Chroma's table of modulations; tables of positions, too, may have other rows.

    Args:
        student: Perhaps without weights.
        teacher: A model of its class, perhaps without weights, too.
    """
    weights, tables = student.state_dict(), dict(teacher.named_buffers())
    for name, table in student.named_buffers():
        other = tables.get(name)
        if name not in BY_NUMBER or name in weights or other is None:
            continue
        if len(other) != len(table):
            return (
                f"{name} has {len(table)} rows in the student and {len(other)} in its teacher, by the numbers of "
                "blocks: until it has learned, a block works with what is computed for another one of the teacher's"
            )
    return None


def planned(
    options: Initialisation, losses: Iterable[Loss], student: nn.Module, teacher: nn.Module
) -> InitialisationPlan | None:
    """The plan of an initialisation that uses the weights alone; None where calibration batches decide.

    Args:
        options: Of the initialisation.
        losses: Of the run, for the groups of SHD.
        student: Of the run, perhaps without weights.
        teacher: Of the run.

    Raises:
        UserError: They do not fit together.
    """
    if options.weights == "random" or options.heads == "merge":
        return None
    return _selection(student, teacher, options, shd_of(losses)).plan()


def _selection(
    student: nn.Module,
    teacher: nn.Module,
    options: Initialisation,
    shd: SHD,
    weights: Mapping[str, Tensor] | None = None,
) -> Selection:
    """What the student is made of.

    Raises:
        UserError: The student does not have parts of its teacher.
    """
    learned, taught = prediction_of(student), prediction_of(teacher)
    if learned != taught:
        raise UserError(
            f"initialisation: the student predicts {learned} and its teacher {taught}: the same weights mean something "
            f"else; set student.prediction={taught}"
        )
    layers = _sources(student, teacher, options, shd)
    by_weights, merge = options.channels == "importance", options.heads == "merge"
    selection = Selection(student, teacher, layers, shd.squeezer, by_weights, weights, merge)
    selection.check_groups()
    return selection


def _sources(student: nn.Module, teacher: nn.Module, options: Initialisation, shd: SHD) -> dict[str, str]:
    """Student block -> teacher block."""
    plan = KeptPlan.named(shd.layers if options.layers is None else options.layers)
    named = options.layers if isinstance(options.layers, dict) else None
    layers = depth.pairs(student, teacher, plan or (options.layers if named is None else "sections"))
    if named is not None:  # blocks that it leaves out go by section, as those that the loss leaves out
        layers |= depth.pairs(student, teacher, named)
    elif options.layers is None and isinstance(shd.layers, dict):
        layers |= depth.pairs_of_layers(student, teacher, shd.layers)
    elif options.layers is None and shd.layers == "proportional":
        by_depth = depth.pairs(student, teacher, "proportional")
        layers |= depth.pairs_of_layers(student, teacher, {f"{b}.": f"{source}." for b, source in by_depth.items()})
    return depth.with_beside(student, teacher, depth.with_inner(student, teacher, layers))


def moment_batches(task: Task[Any], seed: int, batch_size: int, images: int, at_once: int = AT_ONCE) -> Iterator[Batch]:
    """The first images of the run in all passes, the same for any number of processes.

    Args:
        task: Which draws them.
        seed: Of the run.
        batch_size: Of the run.
        images: Their number.
        at_once: How many fit into one forward.
    """
    start, at_once = 0, min(at_once, AT_ONCE)
    while start < images:
        step, first = divmod(start, batch_size)
        last = min(first + at_once, first + images - start, batch_size)
        yield from task.draw(Draws(seed, step, range(first, last), batch_size))
        start += last - first


def shd_of(losses: Iterable[Loss | nn.Module]) -> SHD:
    """The first SHD among the losses; SHD() if there is none."""
    return next((loss for loss in losses if isinstance(loss, SHD)), SHD())
