"""`dit-shd train CONFIG dry_run=true`: what the run would take, as text. Nothing is written."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dit_shd.core import places
from dit_shd.core.config import checked
from dit_shd.core.errors import UserError
from dit_shd.models import loading
from dit_shd.profiling import meta
from dit_shd.profiling.estimate import hours, peaks
from dit_shd.profiling.flops import Operations, forward_operations, step_operations, tokens_of
from dit_shd.profiling.hardware import current_device, peak_memory
from dit_shd.profiling.memory import Memory, step_memory
from dit_shd.reports.tables import plain_table
from dit_shd.training import checks
from dit_shd.training.dry_run import Measurement, take_a_step
from dit_shd.training.ema import too_slow

if TYPE_CHECKING:
    from dit_shd.training.config import TrainConfig


_log = logging.getLogger("dit_shd")
GIGA = 1e9


def dry_run(config: "TrainConfig") -> str:
    """Count a run, take one step of it (`estimate.measure`), and say what was found.

    Neither the data nor, with `estimate.teacher`, the teacher need be there.

    Raises:
        UserError: a config that cannot work.
    """
    config = checked(config, "train")
    checks.ranges(replace(config, dry_run=False))
    before = peak_memory(current_device())
    images = checks.micro_batch_size(config, int(os.environ.get("WORLD_SIZE", "1")))
    checks.teaching(config, [p.build("losses", f"losses.{i}") for i, p in enumerate(config.losses)])
    student = meta.build(config.student, "student")
    teacher, there = _teacher(config)
    for role, model in (("student", student), ("teacher", teacher)):
        if model is not None:
            checks.masked_pass(config, role, model)
    operations = step_operations(config, student, teacher)
    memory = step_memory(config, student, teacher, images)
    measured, counted = None, None
    if config.estimate.measure:
        _log.info("taking two real steps of one image (estimate.measure=false for none)")
        tried = config
        if current_device().type == "cpu":  # most have no bfloat16 products and take a hundred times as long
            tried = replace(config, precision="no", teacher_precision="no")
        counted = step_memory(tried, student, teacher, 1)
        real = teacher if there or config.estimate.teacher is None else config.estimate.teacher.build("models")
        measured = take_a_step(tried, real, 1, before)
    sections = [
        _models(student, teacher),
        _operations(config, operations),
        _hours(config, operations, student, teacher),
        _memory(config, memory, measured, counted),
    ]
    slow = too_slow(config.ema_rates, config.steps, config.ema_warmup)
    if slow:
        sections.append(slow)
    if teacher is not None and not there:
        sections.append(f"{config.teacher} is not there yet; the teacher was counted as estimate.teacher says.")
    return "\n\n".join(sections)


def _teacher(config: "TrainConfig") -> tuple[Any, bool]:
    """The teacher, and whether it is the real one: with its weights if it is there, else as estimate.teacher says."""
    source, stand_in = config.teacher, config.estimate.teacher
    if source is None:
        return None, False
    if stand_in is not None and not places.is_here(source, "model"):
        return meta.build(stand_in, "estimate.teacher"), False
    try:
        return loading.load_conditional(source), True
    except UserError as error:
        hint = "to count without it, say what it will be: estimate.teacher='{name: mdt, size: B/2}'"
        raise UserError(f"teacher: {error}; {hint}") from error


def _models(student: Any, teacher: Any) -> str:
    rows = []
    for role, model in (("teacher", teacher), ("student", student)):
        if model is not None:
            own = model.config
            width = own.num_attention_heads * own.attention_head_dim
            millions = sum(p.numel() for p in model.parameters()) / 1e6
            rows.append([role, type(model).__name__, *map(str, _shape(own, width, model)), f"{millions:.2f} M"])
    return _table(["model", "family", "layers", "heads", "width", "tokens", "parameters"], rows)


def _shape(own: Any, width: int, model: Any) -> Sequence[int]:
    return own.num_layers, own.num_attention_heads, width, tokens_of(model)


def _operations(config: "TrainConfig", found: Operations) -> str:
    names = list(found.passes)
    parts: dict[str, list[float]] = {}
    for position, each in enumerate(found.passes.values()):
        values = {"teacher, forward": each.teacher, "student, forward": each.forward}
        values |= {"student, backward": each.backward, **each.losses}
        for part, value in values.items():
            parts.setdefault(part, [0.0] * len(names))[position] = value
    parts = {part: values for part, values in parts.items() if any(values)}
    parts["in all"] = [each.total for each in found.passes.values()]
    again = [each.recomputed for each in found.passes.values()]
    if any(again):
        parts["computed again"] = again
    headings = ["GFLOP of one image", *(f"{n} ({found.passes[n].tokens} tokens)" for n in names), "both", "share"]
    rows = [
        [part, *(f"{v / GIGA:.2f}" for v in values), f"{sum(values) / GIGA:.2f}", f"{sum(values) / found.total:.3f}"]
        for part, values in parts.items()
    ]
    step = found.executed * config.batch_size
    run = step * config.steps
    return (
        f"{_table(headings, rows)}\n"
        f"one optimizer step ({config.batch_size} images): {step / 1e12:.3g} TFLOP; "
        f"{config.steps:,} steps: {run / 1e18:.3g} EFLOP (a multiply-add counts as two)"
    )


def _hours(config: "TrainConfig", found: Operations, student: Any, teacher: Any) -> str:
    own = config.estimate
    work = {f"training, {config.steps:,} steps": found.executed * config.batch_size * config.steps}
    for role, model in (("student", student), ("teacher", teacher)):
        if model is not None:
            forwards = 2 * own.samples * own.sampling_steps
            work[f"sampling {own.samples:,} of the {role}"] = forward_operations(model) * forwards
    gpus = peaks(config.precision, config.peak_tflops)
    rows = [[what, *(f"{hours(each, peak, own.mfu):.3g}" for peak in gpus.values())] for what, each in work.items()]
    named = ", ".join(f"{name} {peak:g}" for name, peak in gpus.items())
    return (
        f"{_table(['GPU-hours', *gpus], rows)}\n"
        f"assumed: {own.mfu:g} of the peak (TFLOP/s at precision={config.precision}: {named}); sampling in "
        f"{own.sampling_steps} guided steps, two forwards each; decoding and evaluation not counted"
    )


def _memory(config: "TrainConfig", memory: Memory, measured: Measurement | None, counted: Memory | None) -> str:
    columns = [each for each in (memory, counted) if each is not None]
    rows = [[part, *(_gib(each.parts[part]) for each in columns)] for part, size in memory.parts.items() if size]
    rows.append(["in all", *(_gib(each.total) for each in columns)])
    names = [f"batch {memory.images}"]
    if measured is not None:
        names.append(f"as measured (batch {measured.images}{', float32' if measured.device == 'cpu' else ''})")
    lines = [_table(["GiB of one process, by count", *names], rows)]
    lines.append(
        f"several processes: DDP holds the gradients twice (+{_gib(memory.parts['gradients'])} GiB); FSDP2 divides "
        "weights, gradients, states and averages by their number"
    )
    if measured is not None:
        lines.append(
            f"measured on {measured.device}: a step of {measured.images} image took {measured.seconds:.1f} s and "
            f"{_gib(measured.peak)} GiB at most"
        )
    return "\n".join(lines)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return plain_table([(name, "") for name in headings], rows)
