"""The cost of a run, as text."""

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from dit_shd.attention.capture import layer_of
from dit_shd.core.errors import UserError
from dit_shd.profiling.captures import captures_of
from dit_shd.profiling.estimate import PROCESSES, DryRun, hours, peaks
from dit_shd.profiling.flops import forward_operations
from dit_shd.profiling.sampling import sampling_of
from dit_shd.reports.tables import plain_table
from dit_shd.tasks import Task

GIGA = 1e9
GPU_GIB = 79
"""What an A100 or H100 of 80 GB has."""
HOUR, DAY = 3600, 86_400
"""In seconds."""
SHORTEST = 1e-3
"""Hours or days that are written as such; a student of digits takes less."""


def dry_run_text(run: DryRun) -> str:
    """Tables of models, operations, GPU-hours and memory."""
    sections = [_models(run), _operations(run), _hours(run), _memory(run)]
    if run.beginning:
        sections.append("\n".join(["The student begins with its teacher's weights:", *run.beginning]))
    if run.warning is not None:
        sections.append(run.warning)
    if run.sizes:
        sections.append("\n".join(run.sizes))
    for place in run.teachers_missing:
        sections.append(f"{place} is not here; the teacher was counted as estimate.teacher describes it.")
    return "\n\n".join(sections)


def _models(run: DryRun) -> str:
    rows = []
    for role, model in {**run.teachers, "student": run.student}.items():
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        rows.append([role, type(model).__name__, *_shape(model, run.task), f"{millions:.2f} M"])
    return _table(["model", "family", "layers", "heads", "width", "tokens", "parameters"], rows)


def _shape(model: nn.Module, task: Task[Any]) -> list[str]:
    """Layers, heads, width and tokens of a model's self-attention."""
    try:
        captures = captures_of(model, task)
    except UserError:  # of linear attention alone, as Sana's
        return ["-"] * 4
    first, layers = next(iter(captures.values())), len(set(map(layer_of, captures)))
    return [str(number) for number in (layers, first.heads, first.heads * first.query.shape[-1], first.shape[2])]


def _operations(run: DryRun) -> str:
    operations, passes = run.operations, run.operations.passes
    components: dict[str, list[float]] = {}
    for position, counts in enumerate(passes.values()):
        values = {"teacher, forward": counts.teacher, "student, forward": counts.forward}
        values |= {"student, backward": counts.backward, **counts.losses}
        for component, value in values.items():
            components.setdefault(component, [0.0] * len(passes))[position] = value
    components = {component: values for component, values in components.items() if any(values)}
    components["total"] = [counts.total for counts in passes.values()]
    recomputed = [counts.recomputed for counts in passes.values()]
    if any(recomputed):
        components["recomputed"] = recomputed
    headings = ["GFLOP of one image", *(f"{name} ({passes[name].tokens} tokens)" for name in passes), "both", "share"]
    rows: list[list[str]] = []
    for component, values in components.items():
        both = sum(values)
        giga = [f"{value / GIGA:.2f}" for value in (*values, both)]
        rows.append([component, *giga, f"{both / operations.total:.3f}"])
    first, *later = (
        f"{each.executed * run.batch_size / 1e12:.3g} TFLOP{f' from step {start:,} on' if start else ''}"
        for start, each in run.operations_by_step.items()
    )
    ends = f", {', '.join(later)}, where losses end" if later else ""
    return (
        f"{_table(headings, rows)}\n"
        f"one optimizer step ({run.batch_size} images): {first}{ends}; "
        f"{run.steps:,} steps: {run.all_operations / 1e18:.3g} EFLOP (a multiply-add counts as two)"
    )


def _hours(run: DryRun) -> str:
    assumed = run.assumed
    work, words = {f"training, {run.steps:,} steps": run.all_operations}, dict[str, None]()
    for role, model in {"student": run.student, **run.teachers}.items() if run.task.generates else ():
        guided = model is not run.student or not run.learns_guidance
        sampling = sampling_of(run.task, model, assumed.sampling_steps, guided)
        forwards = sampling.forwards * assumed.samples * sampling.steps
        work[f"sampling {assumed.samples:,} of the {role}"] = forward_operations(model, run.task) * forwards
        words[sampling.words] = None
    gpus = peaks(run.precision, run.peak_tflops)
    rows = [
        [name, *(_time(hours(flops, gpu, assumed.mfu), HOUR) for gpu in gpus.values())] for name, flops in work.items()
    ]
    drawn = " or ".join(words)
    named = ", ".join(f"{name} {peak:g}" for name, peak in gpus.items())
    return (
        f"{_table(['GPU-hours', *gpus], rows)}\n"
        f"assumed: {assumed.mfu:g} of the peak (TFLOP/s at precision={run.precision}: {named})"
        f"{f'; sampling in {drawn}; decoding and' if drawn else ';'} evaluation not counted"
    )


def _memory(run: DryRun) -> str:
    memory, measured = run.memory, run.measured
    unit, bytes_of_it = _unit(memory.total)
    columns = [column for column in (memory, run.counted) if column is not None]
    uses = [use for use, size in memory.parts.items() if size]
    rows = [[use, *(f"{column.parts[use] / bytes_of_it:.2f}" for column in columns)] for use in uses]
    rows.append(["total", *(f"{column.total / bytes_of_it:.2f}" for column in columns)])
    names = [f"batch {memory.images}"]
    if measured is not None:
        names.append(f"as measured (batch {measured.images}{', float32' if measured.device == 'cpu' else ''})")
    lines = [_table([f"{unit} of one process, by count", *names], rows)]
    lines.append(_several(run))
    if measured is not None:
        lines.append(
            f"measured on {measured.device}: a step of {measured.images} image took {measured.seconds:.1f} s and "
            f"{measured.peak / _unit(measured.peak)[1]:.2f} {_unit(measured.peak)[0]} at most"
        )
    return "\n".join(lines)


def _several(run: DryRun) -> str:
    """What one process and each of several hold, and how long a run is."""
    memory, count = run.memory_of_several, PROCESSES
    held = {"1 GPU": (run.memory.total, 1), f"{count} GPUs, DDP": (memory.replicated, count)}
    accumulates = len(run.task.passes) > 1 or count * memory.images < run.batch_size
    if run.fsdp2_refusal is None:
        held[f"{count} GPUs, FSDP2"] = (memory.divided(count, accumulates), count)
    images = [run.memory.images, *[memory.images] * (len(held) - 1)]
    unit, bytes_of_it = _unit(run.memory.total)
    rows = [["images of a micro batch", *map(str, images)]]
    rows.append([f"{unit} of each", *(f"{size / bytes_of_it:.2f}" for size, _ in held.values())])
    rows.append([f"fits into {GPU_GIB} GiB", *("yes" if size < GPU_GIB * 2**30 else "no" for size, _ in held.values())])
    for name, peak in peaks(run.precision, run.peak_tflops).items():
        total = hours(run.all_operations, peak, run.assumed.mfu)
        rows.append([f"days of training, {name}", *(_time(total / gpus / 24, DAY) for _, gpus in held.values())])
    divided = "all that is not of a pass" + ("" if memory.divides_teacher else ", but for the teacher")
    whole = f"a pass gathers {memory.gathered / bytes_of_it:.2f} {unit} of weights, the student's all"
    whole += "; gradients are whole until a step's last pass" if accumulates else ""
    note = f"FSDP2 divides {divided}; {whole}" if run.fsdp2_refusal is None else run.fsdp2_refusal
    return f"{_table(['processes', *held], rows)}\nDDP holds the gradients twice; {note}"


def _time(count: float, unit: int) -> str:
    """A number of hours or days; of less than a thousandth of one, how many seconds it is under."""
    return f"{count:.3g}" if count >= SHORTEST else f"under {math.ceil(SHORTEST * unit)} s"


def _unit(size: int) -> tuple[str, int]:
    """The unit in which memory is told, and its bytes: of less than a GiB nothing would be left at two digits."""
    return ("GiB", 2**30) if size >= 2**30 else ("MiB", 2**20)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return plain_table([(name, "") for name in headings], rows)
