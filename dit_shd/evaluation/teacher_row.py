"""The teacher's figures beside a student's: of samples that differ in the model alone, by the same evaluator.

`dit-shd sample` records a run's teacher beside the samples. Results files of the teacher's samples are looked for
beside the student's samples, in the teacher's folder and in the working folder.
"""

import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dit_shd.core.pretrained import model_folder
from dit_shd.core.resumable import differences
from dit_shd.core.yaml_files import words_of
from dit_shd.data.image_sets import CRC
from dit_shd.data.sampled_weights import have_changed
from dit_shd.evaluation import results

OF_THE_MODEL = ("run", "teacher", "model_sha256", "pipeline", "vae", "vae_name", "batch_size", "compile", CRC)
"""What is recorded beside samples and may differ: model and images, and what does not change an image (the autoencoder
counts by its hash)."""
EVALUATED_ALIKE = ("reference", "crop", "features", "metrics", "resamples", "device")
"""Options of `dit-shd evaluate` that are the same for the teacher's samples."""
MOST_BYTES = 2**26
"""Of a results file; others may be annotations of a data set."""

SamplingCommand = Callable[[Path, Path], str]
"""The command that samples from the teacher as some samples were sampled, into a file."""


def teacher_row(record: Mapping[str, Any], folder: Path) -> dict[str, Any] | None:
    """The entry of the teacher in the record of one file of samples.

    Args:
        record: Complete but for that entry.
        folder: The folder of the samples.

    Returns:
        `run`, the teacher; and either `results`, the file that its row is from, and `figures`, or `why_not`. None where
        the samples record no teacher.
    """
    teacher = record["samples"].get("sidecar", {}).get("teacher")
    if not isinstance(teacher, str):
        return None
    reasons = []
    for file, other in _records_of(teacher, (folder, Path(teacher), Path())):
        reason = _why_not(record, other) or _has_changed(teacher, other)
        if reason is None:
            figures = {name: value for name, value in other["figures"].items() if name in record["figures"]}
            return {"run": teacher, "results": str(file), "figures": figures}
        reasons.append(f"{file} is of {reason}")
    return {"run": teacher, "why_not": "; ".join(reasons[:2]) or "no results file of its samples is beside these"}


def shared_row(rows: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """The entry of the teacher in the record of several files of samples, from theirs: means over its files."""
    first = next((row for row in rows if row is None or "figures" not in row), rows[0])
    if first is None or "figures" not in first:
        return first
    entries = [row for row in rows if row is not None]
    if len({row["run"] for row in entries}) > 1:
        return {"run": first["run"], "why_not": "the samples are of students of several teachers"}
    names = [name for name in first["figures"] if all(name in row["figures"] for row in entries)]
    files = ", ".join(dict.fromkeys(row["results"] for row in entries))
    means = {name: statistics.mean(row["figures"][name] for row in entries) for name in names}
    return {"run": first["run"], "results": files, "figures": means}


def commands(samples: Path, options: Mapping[str, Any], sampling: SamplingCommand) -> list[str]:
    """The two commands that make the teacher's row.

    Args:
        samples: The student's file.
        options: The options of `dit-shd evaluate` for the student's.
        sampling: Gives the first command.
    """
    out = samples.with_name(f"teacher_of_{samples.stem}.npz")
    same = words_of({key: options[key] for key in EVALUATED_ALIKE if key in options})
    return [sampling(samples, out), shlex.join(["dit-shd", "evaluate", str(out), *same])]


def _records_of(teacher: str, folders: Sequence[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The results files in some folders that are of one file of samples of the teacher, the newest first."""
    files = [file for folder in reversed(folders) for file in folder.glob("*.json") if file.is_file()]
    places = {file.resolve(): file for file in files if file.stat().st_size < MOST_BYTES}
    for file in sorted(places.values(), key=lambda file: -file.stat().st_mtime):
        record = results.read_record(file)
        run = record["samples"].get("sidecar", {}).get("run") if record and "runs" not in record else None
        if record is not None and isinstance(run, str) and _model(run) == _model(teacher):
            yield file, record


def _model(place: str) -> str:
    """What two names of one model have in common."""
    folder = model_folder(Path(place))
    return place if folder is None else str(folder.resolve())


def _has_changed(teacher: str, other: Mapping[str, Any]) -> str | None:
    """Whether a record is of other weights than those in the teacher's folder; None where that cannot be told."""
    folder = model_folder(Path(teacher))
    changed = folder is not None and have_changed(other["samples"]["sidecar"], [folder])
    return f"other weights than {teacher} has now" if changed else None


def _why_not(record: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Why the figures of two records may not stand beside each other; None where they may."""
    difference = results.evaluator_difference(record, other)
    if difference is not None:
        what, here, there = difference
        return f"other {what} ({there}, here {here})"
    samples, others = (one["samples"] for one in (record, other))
    if samples["n"] != others["n"]:
        return f"{others['n']:,} images (here {samples['n']:,})"
    settings, other_settings = (
        {key: value for key, value in one["sidecar"].items() if key not in OF_THE_MODEL} for one in (samples, others)
    )
    if settings != other_settings:
        return f"other sampling settings ({differences(other_settings, settings)})"
    if samples.get("labels") != others.get("labels"):
        return f"other classes ({others.get('labels')}, here {samples.get('labels')})"
    return None
