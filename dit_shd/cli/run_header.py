"""The first lines of a run: what will be trained, on what and how, before the first step."""

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from dit_shd.attention.capture import Captures, layer_of
from dit_shd.core.errors import UserError
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import LayerLoss, Loss
from dit_shd.distillation.losses.shd import SHD
from dit_shd.distillation.schedule import at_step
from dit_shd.distillation.teachers import chosen, role
from dit_shd.models.shape import shape_of
from dit_shd.profiling.captures import captures_of
from dit_shd.profiling.flops import forward_operations
from dit_shd.squeezing.squeezer import Squeezer
from dit_shd.training.run_folder import RunFolder
from dit_shd.training.step import Step
from dit_shd.training.trainer import Trainer

MEASURED_STEPS = 20
"""Steps from which the time of a run is estimated; the first one, which compiles and allocates, does not count."""


def run_header(trainer: Trainer) -> str:
    """What a run is, in aligned lines.

    Args:
        trainer: The trainer of the run, before its first step.
    """
    distiller, student = trainer.state.distiller, trainer.student
    rows: list[tuple[str, str]] = [("run", _run(trainer)), ("device", _device(trainer))]
    teachers = {role(name): (trainer.config.teachers[name], model) for name, model in trainer.teachers.items()}
    rows += [(key, _model(trainer, model, place)) for key, (place, model) in teachers.items()]
    rows.append(("student", _model(trainer, student)))
    rows += [("lora", _lora(trainer))] if trainer.config.lora.rank else []
    rows.append(("data", _data(trainer)))
    for name, loss in distiller.named_losses():
        if isinstance(loss, LayerLoss):
            rows.append((f"layers, {name}", _layers(trainer, name, loss)))
    rows += [("losses", _losses(trainer, distiller)), ("steps", _steps(trainer))]
    width = max(len(key) for key, _ in rows)
    return "\n".join(f"{key:<{width}}  {text}" for key, text in rows)


def _run(trainer: Trainer) -> str:
    if not trainer.first_step:
        return f"{trainer.config.run}: a new run of task {trainer.config.task.name}"
    newest = RunFolder(trainer.config.run).newest
    where = "" if newest is None else f" ({newest})"
    return f"{trainer.config.run}: resumed from step {trainer.first_step:,} of {trainer.config.steps:,}{where}"


def _device(trainer: Trainer) -> str:
    accelerator, config = trainer.accelerator, trainer.config
    device = accelerator.device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type}, {torch.get_num_threads()} of {os.cpu_count()} threads"
    several = f" x {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
    precision = "float32" if config.precision == "no" else config.precision
    options = [f"precision {precision}", *(["compiled"] if config.compile else [])]
    options += ["gradient checkpointing"] if config.gradient_checkpointing else []
    options += [config.sharding] if config.sharding != "no" else []
    return f"{name}{several}; {', '.join(options)}"


def _model(trainer: Trainer, model: nn.Module, place: str = "") -> str:
    """Family, layers, heads, width, parameters and operations of a model."""
    task, shape = trainer.task, shape_of(model)
    facts = [type(getattr(model, "_orig_mod", model)).__name__.removeprefix("FSDP")]  # fully_shard names it anew
    captures = _captures(trainer, model)
    if captures:
        first = next(iter(captures.values()))
        width = shape.width if shape.names("attention_head_dim") else first.heads * first.query.shape[-1]
        facts += [
            f"{len(set(map(layer_of, captures)))} layers",
            f"{first.heads} heads",
            f"width {width}",
            f"{first.shape[2]} tokens",
        ]
    facts.append(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    facts.append(f"{forward_operations(model, task, task.passes[0]) / 1e9:.3g} GFLOP a sample")
    return f"{f'{place}: ' if place else ''}{', '.join(facts)}"


def _lora(trainer: Trainer) -> str:
    sizes = [(p.numel(), p.requires_grad) for p in trainer.student.parameters()]
    trained = sum(size for size, learns in sizes if learns)
    share = trained / sum(size for size, _ in sizes)
    maps = sum(hasattr(module, "lora_A") for module in trainer.student.modules())
    return (
        f"rank {trainer.config.lora.rank} on {maps} linear maps, {trained / 1e6:.2f} M parameters trained ({share:.1%})"
    )


def _captures(trainer: Trainer, model: nn.Module) -> Captures:
    """The attention layers of a model; none of one that has none, or whose attention cannot be captured."""
    try:
        return captures_of(model, trainer.task)
    except UserError:
        return {}


def _data(trainer: Trainer) -> str:
    dataset, name = trainer.task.dataset, trainer.config.data.name
    classes = getattr(dataset, "classes", None)
    shape = getattr(dataset, "shape", None)
    facts = [f"{len(dataset):,} samples", *([f"{classes:,} classes"] if classes else [])]
    facts += [f"shape {' x '.join(map(str, shape))}"] if shape and all(shape) else []  # images of any size have 0
    return f"{name}: {', '.join(facts)}"


def _layers(trainer: Trainer, name: str, loss: LayerLoss) -> str:
    """Which layer of the teacher each of the student's learns from, and how many heads become how many."""
    (key,) = chosen(loss.teacher, trainer.teachers, name)
    teacher, student = _captures(trainer, trainer.teachers[key]), _captures(trainer, trainer.student)
    try:
        pairs = loss.layer_map(student, teacher)
    except ValueError:  # a loss of blocks, not of attention layers
        pairs = {}
    if not pairs:  # or of models whose attention cannot be captured
        return f"pairs by {loss.layers}"
    heads = sorted({(teacher[t].heads, student[s].heads) for s, t in pairs.items()})
    merged = ", ".join(f"{h} heads into {g}" for h, g in heads)
    return f"{merged}{_plan(loss)}; {_pairs(pairs)}"


def _plan(loss: LayerLoss) -> str:
    """How SHD merges heads; empty for other losses."""
    if not isinstance(loss, SHD):
        return ""
    squeezer: Squeezer = loss.squeezer  # type: ignore[assignment]
    return f" ({squeezer.plan if isinstance(squeezer.plan, str) else 'groups as given'}, {squeezer.method})"


def _pairs(pairs: Mapping[str, str]) -> str:
    """Pairs of layers by section, student <- teacher: blocks 0<-1 1<-3."""
    if all(s == t for s, t in pairs.items()):
        return f"{len(pairs)} layers, each from the teacher's of the same name: {_names(list(pairs))}"
    shown = dict.fromkeys(f"{_short(s)} <- {_short(t)}" for s, t in pairs.items())  # NAME and NAME:text are one
    return f"student <- teacher: {', '.join(shown)}"


def _names(layers: Sequence[str]) -> str:
    """Layers by section: en_inblocks 0 1 2, de_blocks 0."""
    sections: dict[str, list[str]] = {}
    for layer in layers:
        match = re.search(r"\d+", layer)
        sections.setdefault(layer[: match.start()].rstrip(".") if match else layer, []).append(
            match[0] if match else ""
        )
    return ", ".join(f"{name} {' '.join(numbers)}".strip() for name, numbers in sections.items())


def _short(layer: str) -> str:
    match = re.search(r"\d+", layer)
    return layer[: match.end()] if match else layer


def _losses(trainer: Trainer, distiller: Distiller) -> str:
    """The base terms and those of distillation with their weights, pass by pass where they differ."""
    first = trainer.first_step
    by_pass = {name: list(_terms(distiller.losses_of(name), first)) for name in trainer.task.passes}
    base = _base(distiller.base_weight, first)
    terms = [f"{name}: {' + '.join([base, *parts])}" for name, parts in by_pass.items()]
    return "; ".join(terms) if len(terms) > 1 else terms[0].partition(": ")[2]


def _terms(losses: Mapping[str, Loss], step: int) -> Iterator[str]:
    for name, loss in losses.items():
        changes = f" (by step: {loss.weight})" if len(loss.weight) > 1 else ""
        yield f"{loss.weight_at(step):g} x {name}{changes}"


def _base(weight: dict[int, float], step: int) -> str:
    """The task's own terms with their factor, if that is not 1."""
    if weight == {0: 1.0}:
        return "base"
    changes = f" (by step: {weight})" if len(weight) > 1 else ""
    return f"{at_step(weight, step):g} x base{changes}"


def _steps(trainer: Trainer) -> str:
    config, images = trainer.config, len(trainer.task.dataset)
    epoch = images / config.batch_size
    rounds = trainer.batches.rounds
    divided = f" as {rounds} micro batches of {trainer.batches.micro_size}" if rounds > 1 else ""
    return (
        f"{config.steps:,} of {config.batch_size} samples{divided}; an epoch of {images:,} samples is {epoch:,.1f} "
        f"steps, the run {config.steps / epoch:,.1f} epochs"
    )


class RemainingTime:
    """The time that a run will take, from its first steps.

    Args:
        first: The step that it begins with, from 0.
        total: All of its steps.
    """

    def __init__(self, first: int, total: int):
        self._first, self._total, self._start = first, total, 0.0

    def after(self, step: Step) -> str | None:
        """The estimate, once there is one; None after every other step.

        Args:
            step: That was taken.
        """
        taken = step.number - self._first
        if taken == 1:
            self._start = time.monotonic()
        if taken != MEASURED_STEPS or step.number >= self._total:
            return None
        seconds = (time.monotonic() - self._start) / (MEASURED_STEPS - 1)
        left = seconds * (self._total - step.number)
        return f"about {duration(left)} left: {seconds:.3g} s a step"


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}" if unit != "min" else f"{seconds / size:.0f} min"
    return f"{seconds:.0f} s"


def shown_terms(metrics: Mapping[str, float]) -> dict[str, str]:
    """The loss and all of its terms, for a bar: `plain/` is left out, figures of single layers are.

    Args:
        metrics: Of a logged step; empty on others.
    """
    terms = {key: value for key, value in metrics.items() if key == "loss" or (key.count("/") == 1)}
    return {key.removeprefix("plain/"): f"{value:.4f}" for key, value in terms.items() if "grad_norm" not in key}
