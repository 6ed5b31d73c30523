"""Initialisation of a student with its teacher's weights.

Layers are selected by the layer map; heads are selected or merged by the groups and weights of the squeeze; channels
are selected by their importance on calibration batches; and every linear map that loses inputs is refitted to those it
keeps. Equal depth, heads and widths give a copy.

structure.py  tensors that share channels         importance.py  selection of channels
heads.py      a head from a group of heads        regression.py  refitting a map to the inputs it keeps
moments.py    moments on calibration batches      transfer.py    the new weights; plan.py the decisions, for the user

That is for MDTv2 and DiT of dit_shd. Students of any other class begin with sub-tensors of their teachers':

axes.py       tensors that share channels         selection.py   what is kept, and the first weights
layouts.py    where heads stand, by class         refit.py       refitting each map to what the student gives it
depth.py      layers; a plan of kept blocks       folding.py     parts that the student does not have, in others
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from dit_shd.core.config import option
from dit_shd.core.errors import UserError
from dit_shd.core.rng import Draws
from dit_shd.distillation.initialisation import depth, structure
from dit_shd.distillation.initialisation.folding import left_out
from dit_shd.distillation.initialisation.plan import InitialisationPlan
from dit_shd.distillation.initialisation.refit import refit
from dit_shd.distillation.initialisation.selection import Selection
from dit_shd.distillation.initialisation.transfer import Transfer
from dit_shd.distillation.kept import KEPT, KeptPlan
from dit_shd.distillation.layer_map import LayerMap, layer_map
from dit_shd.distillation.losses import Loss
from dit_shd.distillation.losses.shd import SHD
from dit_shd.models.language_model import kinds_of_attention
from dit_shd.models.prediction import prediction_of
from dit_shd.models.settings import by_depth, differing_settings, in_words
from dit_shd.models.shape import shape_of
from dit_shd.squeezing.plans import contiguous
from dit_shd.tasks import Batch, Task

AT_ONCE = 32
"""Calibration images in one forward of the teacher, at most."""


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
    channels: Literal["importance", "first"] = option("importance", "keep the most important channels, or the first")
    calibration: int = option(
        256, "images to measure importance and moments on; 0: use the weights alone", range=(0, 1e6)
    )

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

    MDTv2 and DiT: the teacher runs over the batches twice, and second moments of the inputs of narrowed layers are kept
    in float64, about 4 GB on the models' device for XL/2 into S/2. Other classes: see refit.py.

    Args:
        task: Predicts with the teacher.
        student: An MDTv2 or DiT; or of any other class, which begins with sub-tensors of its teacher's.
        teacher: Of the same family, on the same device.
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
    if not structure.known(student.state_dict()):
        selection = _selection(student, teacher, options, shd, weights)
        plan = selection.run()
        if selection.narrowed:
            refit(student, teacher, selection.cut_maps(), task.predict, batches)
        return plan
    _comparable(student, teacher)
    layers = _layers(student, teacher, options, shd)
    h, g = shape_of(teacher).heads, shape_of(student).heads
    groups = {block: shd.squeezer.groups(f"{block}.attn", h, g) for block in layers}
    _narrow_enough(student, teacher, layers)
    how = options.heads == "merge", options.channels == "importance", weights
    transfer = Transfer(student, teacher, layers, groups, *how)
    return transfer.run(task, batches, shd.squeezer)


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
    shd = shd_of(losses)
    if not structure.known(student.state_dict()):
        _selection(student, teacher, options, shd)
        return
    _comparable(student, teacher)
    _narrow_enough(student, teacher, _layers(student, teacher, options, shd))


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
    if structure.known(student.state_dict()):
        return
    layers = _sources(student, teacher, options, shd_of(losses))
    if lost := left_out(student, teacher, layers):
        yield (
            f"the student has no part for {len(lost)} of its teacher's tensors, and begins without what they do there "
            f"(first {lost[0]})"
        )
    if numbered := depth.by_number(student, teacher):
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
    if options.weights == "random" or structure.known(student.state_dict()):
        return None
    return _selection(student, teacher, options, shd_of(losses)).plan()


def _selection(
    student: nn.Module,
    teacher: nn.Module,
    options: Initialisation,
    shd: SHD,
    weights: Mapping[str, Tensor] | None = None,
) -> Selection:
    """Sub-tensors of the teacher's, for classes whose parts are not named here.

    Raises:
        UserError: The student does not have parts of its teacher.
    """
    layers = _sources(student, teacher, options, shd)
    selection = Selection(student, teacher, layers, shd.squeezer, options.channels == "importance", weights)
    selection.check_groups()
    if selection.has_fewer_heads and options.heads == "merge":
        raise UserError(
            f"initialisation.heads: heads are merged in MDTv2 and DiT; a {type(student).__name__} can keep one head of "
            "each group: initialisation.heads=pick"
        )
    return selection


def _sources(student: nn.Module, teacher: nn.Module, options: Initialisation, shd: SHD) -> dict[str, str]:
    """Student block -> teacher block, of such classes."""
    plan = _kept(shd.layers if options.layers is None else options.layers)
    named = options.layers if isinstance(options.layers, dict) else None
    layers = depth.pairs(student, teacher, plan or (options.layers if named is None else "sections"))
    if named is not None:  # blocks that it leaves out go by section, as those that the loss leaves out
        layers |= depth.pairs(student, teacher, named)
    elif options.layers is None and isinstance(shd.layers, dict):
        layers |= depth.pairs_of_layers(student, teacher, shd.layers)
    return depth.with_beside(student, teacher, depth.with_inner(student, teacher, layers))


def _kept(rule: LayerMap | None) -> KeptPlan | None:
    """The plan of kept blocks that a rule names, if it names one."""
    if not isinstance(rule, str) or not rule.startswith(KEPT):
        return None
    return KeptPlan.read(Path(rule.removeprefix(KEPT)).expanduser())


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


def _layers(student: nn.Module, teacher: nn.Module, options: Initialisation, shd: SHD) -> dict[str, str]:
    """Student block -> teacher block; side blocks, which plain passes do not run, are mapped separately."""
    names = tuple([f"{block}.attn" for block in structure.blocks(model)] for model in (teacher, student))
    rule: LayerMap = shd.layers if options.layers is None else options.layers
    plan = _kept(rule)
    if plan is not None:  # its blocks begin with the first of what they stand for
        plan.check(structure.blocks(student))
        rule = {f"{block}.attn": f"{source}.attn" for block, source in plan.weights.items()}
    named = layer_map(names[0], names[1], rule) if isinstance(rule, dict) else {}
    rule = "sections" if isinstance(rule, dict) or rule == "last" else rule  # of blocks that a map leaves out
    side, plain = (
        [[layer for layer in layers if layer.startswith(structure.SIDE) == is_side] for layers in names]
        for is_side in (True, False)
    )
    pairs = layer_map(plain[0], plain[1], rule) | layer_map(side[0], side[1]) | named
    return {layer.removesuffix(".attn"): source.removesuffix(".attn") for layer, source in pairs.items()}


def _comparable(student: nn.Module, teacher: nn.Module) -> None:
    """Check that two models are of one known family, with the same tokens, latent channels and classes."""
    for role, model in (("student", student), ("teacher", teacher)):
        if not structure.known(model.state_dict()):
            raise UserError(
                f"initialisation: wanted an MDTv2 or a DiT of dit_shd as {role}, found a "
                f"{type(model).__name__}; use initialisation.weights=random"
            )
    learned, taught = prediction_of(student), prediction_of(teacher)
    if learned != taught:
        raise UserError(
            f"initialisation: the student predicts {learned} and its teacher {taught}: the same weights mean something "
            f"else; set student.prediction={taught}"
        )
    in_student, in_teacher = structure.fixed(student), structure.fixed(teacher)
    for part in sorted(in_student.keys() | in_teacher.keys()):
        shapes = in_student.get(part), in_teacher.get(part)
        if shapes[0] != shapes[1]:
            raise UserError(
                f"initialisation: {part} has {shapes[0]} in the student and {shapes[1]} in the teacher; "
                "family, tokens, patches, classes and latent channels must be the same"
            )


def _narrow_enough(student: nn.Module, teacher: nn.Module, layers: dict[str, str]) -> None:
    """Check that the student has no more channels or heads than the teacher."""
    available = structure.widths(teacher, layers)
    for space, count in structure.widths(student, {block: block for block in layers}).items():
        if count > available[space]:
            raise UserError(
                f"initialisation: the student has {count} channels in {space}, the teacher only {available[space]}; "
                "channels can be left out, not made up"
            )
    contiguous(shape_of(teacher).heads, shape_of(student).heads)
