"""What a run is and how far it is, read from its folder without importing torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dit_shd.core.errors import UserError
from dit_shd.core.json_files import read_last_lines
from dit_shd.core.run_files import CHECKPOINTS, EVALUATIONS, METRICS, RUN_CONFIG, STUDENT, TIMING
from dit_shd.core.weight_files import parameters
from dit_shd.core.yaml_files import read_yaml
from dit_shd.data.sampled_weights import are_of_earlier, is_teacher

PACE = 50
"""Logged steps by which the time that is left is told."""


@dataclass(frozen=True)
class RunSummary:
    """A run folder, read."""

    path: Path
    settings: Mapping[str, Any]
    """The values of config.yaml."""
    checkpoints: list[int]
    """Steps of the checkpoints, oldest first."""
    metrics: list[dict[str, Any]]
    """The last row of each log, and of times the last PACE."""
    timing: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    students: list[Path]
    """Exported students, the one that is sampled from first."""
    results: list[Path]
    """Results files of evaluate in the folder."""
    running: bool
    """Whether a process holds its lock."""

    @property
    def step(self) -> int:
        """The last step that is logged or saved."""
        return max([0, *self.checkpoints, *(int(row.get("step") or 0) for row in self.metrics[-1:])])

    @property
    def steps(self) -> int:
        """The steps of the whole run."""
        return int(self.settings.get("steps") or 0)

    @property
    def finished(self) -> bool:
        """Whether all steps are taken and the last is saved; a run whose checkpoints were all removed is trusted."""
        saved = self.checkpoints[-1] if self.checkpoints else self.steps
        return min(self.step, saved) >= self.steps

    @property
    def seconds_a_step(self) -> float | None:
        """The median of the last logged steps; None where none is logged."""
        seconds = sorted(float(row["seconds"]) for row in self.timing if "seconds" in row)
        return seconds[len(seconds) // 2] if seconds else None


def read_run(path: Path, running: bool = False) -> RunSummary:
    """Read a run folder; files that are being written are read as far as they are whole.

    Args:
        path: The path of the folder.
        running: Whether a process is at work in it.

    Raises:
        UserError: It is no run folder.
    """
    if not (path / RUN_CONFIG).is_file():
        kind = "a folder without config.yaml" if path.is_dir() else "a file" if path.exists() else "no folder"
        raise UserError(f"{path}: wanted a run folder, found {kind}")
    checkpoints = (folder.name.removeprefix("step_") for folder in (path / CHECKPOINTS).glob("step_*"))
    students = [path / STUDENT, *sorted(path.glob(f"{STUDENT}_ema_*"))]
    return RunSummary(
        path=path,
        settings=read_yaml(path / RUN_CONFIG),
        checkpoints=sorted(int(step) for step in checkpoints if step.isdecimal()),
        metrics=read_last_lines(path / METRICS, 1),
        timing=read_last_lines(path / TIMING, PACE),
        evaluations=read_last_lines(path / EVALUATIONS, 1),
        students=[student for student in students if (student / "config.json").is_file()],
        results=sorted([*path.glob("*results.json")], key=_changed),
        running=running,
    )


def _changed(file: Path) -> float:
    """When a file was written last; 0 for one that has gone meanwhile."""
    try:
        return file.lstat().st_mtime
    except OSError:
        return 0.0


def summary_lines(run: RunSummary) -> list[tuple[str, str]]:
    """What a run is and how far it is: (name, text) of each line."""
    settings = run.settings
    lines = [("run", f"{run.path}: {_state(run)}"), ("task", _plugin(settings.get("task")))]
    lines += [("data", _plugin(settings.get("data")))]
    teacher = settings.get("teacher")
    for name, place in (teacher if isinstance(teacher, dict) else {"": teacher} if teacher else {}).items():
        lines.append((f"teacher {name}".strip(), str(place)))
    lines.append(("student", _student(run)))
    losses = [f"{loss.get('weight', 1)} x {loss['name']}" for loss in settings.get("losses") or []]
    weight = settings.get("base_weight", 1)
    lines.append(("losses", " + ".join(["base" if weight == 1 else f"{weight} x base", *losses])))
    optimizer = settings.get("optimizer") or {}
    rate = f", {optimizer.get('name')} at {optimizer['lr']:g}" if isinstance(optimizer.get("lr"), float) else ""
    lines.append(("steps", f"{run.steps:,} of {settings.get('batch_size')} samples{rate}"))
    if run.metrics:
        lines.append((f"at step {run.metrics[-1].get('step')}", _figures(run.metrics[-1])))
    if run.evaluations:
        lines.append((f"evaluated at {run.evaluations[-1].get('step')}", _figures(run.evaluations[-1], terms=False)))
    lines.append(("checkpoints", ", ".join(f"{step:,}" for step in run.checkpoints) or "none yet"))
    for file in run.results:
        lines.append(("evaluated", _result(file, run)))
    return lines


def _state(run: RunSummary) -> str:
    share = 100 * run.step / max(1, run.steps)
    done = f"step {run.step:,} of {run.steps:,} ({share:.0f}%)"
    changed = max(map(_changed, run.path.iterdir()), default=0.0)
    when = datetime.fromtimestamp(changed).strftime("%Y-%m-%d %H:%M")
    state = "running" if run.running else "finished" if run.finished else "not running"
    seconds = run.seconds_a_step
    left = "" if run.running or run.finished or not run.checkpoints else f", saved at {run.checkpoints[-1]:,}"
    if seconds is not None and run.step < run.steps:
        left += f", {seconds:.3g} s a step, about {seconds * (run.steps - run.step) / 60:,.0f} min left of training"
    return f"{state}, {done}{left}; last written {when}"


def _plugin(value: object) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    options = ", ".join(f"{k}: {v}" for k, v in value.items() if k != "name" and not isinstance(v, Mapping))
    return f"{value.get('name')}{f' ({options})' if options else ''}"


def _student(run: RunSummary) -> str:
    text = _plugin(run.settings.get("student"))
    count = parameters(run.students[0]) if run.students else None
    exported = f"; exported: {', '.join(str(path) for path in run.students)}" if run.students else "; not exported yet"
    return f"{text}{f', {count / 1e6:.2f} M parameters' if count else ''}{exported}"


def _figures(row: Mapping[str, Any], terms: bool = True) -> str:
    """Numbers of a row: the loss and its terms, or all figures."""
    chosen = {key: value for key, value in row.items() if isinstance(value, int | float) and key != "step"}
    if terms:
        chosen = {k: v for k, v in chosen.items() if k == "loss" or (k.count("/") == 1 and "grad_norm" not in k)}
    return ", ".join(f"{key.removeprefix('plain/')} {value:.4g}" for key, value in chosen.items())


def _result(file: Path, run: RunSummary) -> str:
    """The figures of a results file; of weights that the run had before, with a word on that."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        figures = ", ".join(f"{name} {value:.4g}" for name, value in record["figures"].items())
        samples = [each["samples"] for each in record.get("runs", [record])]
        files = [Path(str(each.get("path"))).with_suffix(".json") for each in samples]
        settings = [each.get("sidecar") or {} for each in samples]
        earlier = any(are_of_earlier(*each, run.path, run.students) for each in zip(files, settings))
        teachers = [str(each["run"]) for each in settings if is_teacher(str(each.get("run", "")), run.settings)]
        whose = f" (of the teacher, {teachers[0]})" if teachers else ""
        return f"{file}: {figures}{whose}{' (of earlier weights: sample again)' if earlier else ''}"
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return f"{file}: not readable"
