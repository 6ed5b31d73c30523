"""What a run would take, as text."""

from collections.abc import Sequence
from typing import Any

from dit_shd.profiling.estimate import DryRun, hours, peaks
from dit_shd.profiling.flops import captures_of, forward_operations
from dit_shd.reports.tables import plain_table
from dit_shd.tasks import Task

GIGA = 1e9


def dry_run_text(run: DryRun) -> str:
    """Tables of models, operations, GPU-hours and memory."""
    sections = [_models(run), _operations(run), _hours(run), _memory(run)]
    if run.warning is not None:
        sections.append(run.warning)
    for place in run.teachers_missing:
        sections.append(f"{place} is not there yet; the teacher was counted as estimate.teacher says.")
    return "\n\n".join(sections)


def _models(run: DryRun) -> str:
    rows = []
    for role, model in {**run.teachers, "student": run.student}.items():
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        rows.append([role, type(model).__name__, *_shape(model, run.task), f"{millions:.2f} M"])
    return _table(["model", "family", "layers", "heads", "width", "tokens", "parameters"], rows)


def _shape(model: Any, task: Task[Any]) -> list[str]:
    """Layers, heads, width and tokens of a model's self-attention."""
    captures = list(captures_of(model, task).values())
    heads, width = captures[0].heads, captures[0].query.shape[-1]
    return [str(number) for number in (len(captures), heads, heads * width, captures[0].shape[2])]


def _operations(run: DryRun) -> str:
    found = run.operations
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
    step = found.executed * run.batch_size
    whole = step * run.steps
    return (
        f"{_table(headings, rows)}\n"
        f"one optimizer step ({run.batch_size} images): {step / 1e12:.3g} TFLOP; "
        f"{run.steps:,} steps: {whole / 1e18:.3g} EFLOP (a multiply-add counts as two)"
    )


def _hours(run: DryRun) -> str:
    own = run.assumed
    work = {f"training, {run.steps:,} steps": run.operations.executed * run.batch_size * run.steps}
    for role, model in {"student": run.student, **run.teachers}.items() if run.task.generates else ():
        forwards = 2 * own.samples * own.sampling_steps
        work[f"sampling {own.samples:,} of the {role}"] = forward_operations(model) * forwards
    gpus = peaks(run.precision, run.peak_tflops)
    rows = [[what, *(f"{hours(each, peak, own.mfu):.3g}" for peak in gpus.values())] for what, each in work.items()]
    named = ", ".join(f"{name} {peak:g}" for name, peak in gpus.items())
    sampling = (
        f"; sampling in {own.sampling_steps} guided steps, two forwards each; decoding and evaluation not counted"
    )
    return (
        f"{_table(['GPU-hours', *gpus], rows)}\n"
        f"assumed: {own.mfu:g} of the peak (TFLOP/s at precision={run.precision}: {named})"
        f"{sampling if run.task.generates else ''}; evaluation not counted"
    )


def _memory(run: DryRun) -> str:
    memory, measured = run.memory, run.measured
    columns = [each for each in (memory, run.counted) if each is not None]
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
