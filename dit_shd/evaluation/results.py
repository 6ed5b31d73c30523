"""The record of an evaluation: figures and what they are of, as a table and as results.json."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dit_shd.core.errors import UserError
from dit_shd.core.files import make_folder_of, refuse_input, write_text
from dit_shd.core.json_files import finite, read_object
from dit_shd.core.lock import alone_in
from dit_shd.data.image_sets import ImageSet, settings_file
from dit_shd.evaluation.features import FeatureNetwork

REMEDY = "make room or choose another out=FILE"


def about_samples(samples: ImageSet) -> dict[str, Any]:
    """The entry of the samples: path, hashes, counts, classes, and the sampler's settings file beside them."""
    n, *shape = samples.shape
    entry: dict[str, Any] = {"path": samples.name, "sha256": samples.sha256(), "n": n, "shape": shape}
    if samples.labels is not None:
        counts = np.unique(samples.labels, return_counts=True)[1]
        entry["labels"] = {"classes": len(counts), "fewest": int(counts.min()), "most": int(counts.max())}
    sidecar = samples.sidecar
    if sidecar is not None:
        entry["sidecar"] = finite(sidecar)
    prompts = samples.prompts
    if prompts is not None:
        entry["prompts_sha256"] = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
    return entry


def against_itself(record: Mapping[str, Any]) -> list[str]:
    """A note where the samples are the images of the reference; else none."""
    reference = record["reference"]
    hashes = reference["sha256"], reference.get("statistics", {}).get("source_sha256")
    same = record["samples"]["sha256"] in hashes
    return ["the samples are the reference itself: the figures say nothing of a model"] if same else []


def about_network(network: FeatureNetwork, name: str) -> dict[str, Any]:
    """The entry of the feature network, which is called `name` in the command."""
    about = {"name": name, "title": network.title, "sha256": network.sha256, "is_fid": network.is_fid}
    return {**about, "options": dict(network.options)}


def table(record: dict[str, Any]) -> str:
    """The figures as aligned plain text, with the samples and the reference, the verdict and the notes."""
    reference, figures = record["reference"], record["figures"]
    runs = record.get("runs")
    samples = runs[0]["samples"] if runs else record["samples"]
    count = _counted(reference)
    what = f"{len(runs)} files of {samples['n']:,} images" if runs else f"{samples['path']} ({samples['n']:,} images)"
    width = max([len("figure"), *map(len, figures)])
    heading = f"{'mean' if runs else 'value':>12}"
    heading += f"  {'teacher':>12}" if teacher_figures(record) else ""
    heading += f"  {'spread':>10}" if runs else "  95% interval" if "intervals" in record else ""
    lines = [
        f"{what} against {reference['path']} ({count}), features {record['features']['title']}",
        f"{'figure':<{width}}  {heading}",
        *(f"{name:<{width}}  {shown(value):>12}{_beside(record, name)}" for name, value in figures.items()),
        *teacher_lines(record),
        verdict_line(record),
        *(f"note: {note}" for note in record["notes"]),
    ]
    return "\n".join(lines)


def _counted(reference: dict[str, Any]) -> str:
    """How many images a reference has, or its statistics are of and it keeps."""
    kept, of = reference["n"], reference.get("statistics", {}).get("n")
    if not isinstance(of, int):
        return f"{kept:,} images" if kept and of is None else "statistics"
    return f"statistics of {of:,} images" + (f", {kept:,} of them kept" if kept else "")


def shown(value: float) -> str:
    """A figure with four decimals, of a small one three digits."""
    return f"{value:.3g}" if is_small(value) else f"{value:.4f}"


def is_small(value: float) -> bool:
    """Whether a figure needs digits of its own to be read; below 1e-9 it is rounding alone."""
    return 1e-9 < abs(value) < 1e-3


def verdict_line(record: Mapping[str, Any]) -> str:
    """Whether the figures may be set beside published ones."""
    reasons = record["adm_comparable"]["why_not"]
    return f"ADM-comparable: {'no: ' + '; '.join(reasons) if reasons else 'yes'}"


def teacher_figures(record: Mapping[str, Any]) -> dict[str, float]:
    """The teacher's figures by name; none where they are not known."""
    return (record.get("teacher") or {}).get("figures", {})


def teacher_lines(record: Mapping[str, Any]) -> list[str]:
    """Where the teacher's row is from, or why there is none and how to make it; empty for samples without a teacher."""
    teacher = record.get("teacher")
    if teacher is None:
        return []
    if "figures" in teacher:
        return [f"teacher: {teacher['run']}, from {teacher['results']}"]
    make = f"; make it: {' && '.join(teacher['commands'])}" if "commands" in teacher else ""
    return [f"teacher: {teacher['run']} has no row here: {teacher['why_not']}{make}"]


def _beside(record: dict[str, Any], name: str) -> str:
    teacher = teacher_figures(record)
    words = "" if not teacher else f"  {shown(teacher[name]):>12}" if name in teacher else " " * 14
    if "spread" in record:
        return f"{words}  {shown(record['spread'][name]):>10}" if name in record["spread"] else words
    interval = record.get("intervals", {}).get(name)
    return f"{words}  {shown(interval['low'])} to {shown(interval['high'])}" if interval else words


def check_before(out: Path, record: dict[str, Any], force: bool) -> None:
    """Refuse, before a run, to lose a result of other inputs.

    Raises:
        UserError: `out` is a folder, cannot be written, holds another result, is one of the inputs, or is the place of
            the samples' settings.
    """
    _check_file(out)
    for used in (*(run["samples"] for run in record.get("runs", [record])), record["reference"]):
        refuse_input(out, used["path"])
    for run in record.get("runs", [record]):
        there = read_object(out) if out.absolute() == settings_file(Path(run["samples"]["path"])) else None
        if there is not None and "figures" not in there:
            raise UserError(
                f"out={out}: there stand the settings that {run['samples']['path']} was sampled with; choose another "
                "out=FILE"
            )
    make_folder_of(out)
    if out.exists() and not force and _of_same_inputs(out, record) is None:
        raise _another(out)


def check_after(out: Path, record: dict[str, Any], force: bool) -> None:
    """Refuse, after a run, to lose a result of other inputs or with other figures.

    Raises:
        UserError: `out` is a folder, or holds another result.
    """
    _check_file(out)
    if not out.exists() or force:
        return
    old = _of_same_inputs(out, record)
    if old is None or not _close(record["figures"], old["figures"]):
        raise _another(out)


def _check_file(out: Path) -> None:
    if out.is_dir():
        raise UserError(f"out={out}: wanted a file, found a folder; add a file name")


def _of_same_inputs(out: Path, record: dict[str, Any]) -> dict[str, Any] | None:
    """The record in a file, if it is of the same inputs as another."""
    old = read_record(out)
    return old if old is not None and identity(old) == identity(record) else None


def _close(figures: dict[str, float], others: dict[str, float]) -> bool:
    """Whether the same figures are equal but for rounding."""
    return figures.keys() == others.keys() and all(
        np.isclose(figures[k], others[k], rtol=1e-6, atol=1e-9) for k in figures
    )


def _another(out: Path) -> UserError:
    return UserError(
        f"{out}: holds another result (other options, files that changed, or nothing of dit-shd evaluate); "
        "choose out=OTHER.json, or overwrite it with force=true"
    )


def result_paths(samples: ImageSet, head: Mapping[str, Any], plain: bool) -> list[Path]:
    """Names beside the samples for a record, the preferred first.

    They are results.json (if `plain`), NAME.results.json, and a name that only these samples, this reference and this
    network have.
    """
    folder = samples.path.parent if samples.path else Path()
    name = (samples.path.stem if samples.path else samples.name).replace(":", "_")
    if "runs" in head:
        name += f"_and_{len(head['runs']) - 1}_more"
    digest = hashlib.sha256("".join(_compared(head)).encode()).hexdigest()[:8]
    names = ["results.json"] if plain else []
    taken = settings_file(samples.path) if samples.path else None  # of results.npz results.json
    places = [folder / file for file in (*names, f"{name}.results.json", f"{name}.{digest}.results.json")]
    return [file for file in places if file.absolute() != taken]


def place(candidates: Sequence[Path], head: Mapping[str, Any]) -> Path:
    """The first name that is free or holds a record of the same samples, reference and network as `head`.

    The same are equal files or equal contents; check_before then compares the records. The last name if there is
    no such name.
    """
    for file in candidates[:-1]:
        old = read_record(file) if file.exists() else head
        if old is not None and (_compared(old) == _compared(head) or _named(old) == _named(head)):
            return file
    return candidates[-1]


def _compared(record: Mapping[str, Any]) -> list[str]:
    """Hashes of samples, reference and network."""
    runs = record.get("runs", [record])
    return [*(run["samples"]["sha256"] for run in runs), *(record[key]["sha256"] for key in ("reference", "features"))]


def _named(record: Mapping[str, Any]) -> list[str]:
    """Paths of samples and reference, and the network's hash."""
    sets = [*(run["samples"] for run in record.get("runs", [record])), record["reference"]]
    return [*(str(Path(str(entry.get("path"))).resolve()) for entry in sets), record["features"]["sha256"]]


def evaluator_difference(record: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The first part of the evaluator in which two records differ, so that their figures cannot be compared.

    Returns:
        Its name (features, reference, or options of a metric that both have), and what it is in each; None where they
        do not differ.
    """
    for key in ("features", "reference"):
        if record[key]["sha256"] != other[key]["sha256"]:
            names = (str(entry.get("title") or entry["path"]) for entry in (record[key], other[key]))
            return (key, *names)  # type: ignore[return-value]
    of_network = [one["features"].get("options") for one in (record, other)]
    if None not in of_network and of_network[0] != of_network[1]:  # records of earlier versions do not say
        return f"options of {record['features']['name']}", str(of_network[0]), str(of_network[1])
    options = {metric["name"]: metric for metric in other["metrics"]}
    for metric in record["metrics"]:
        there = options.get(metric["name"], metric)
        if there != metric:
            return f"options of {metric['name']}", str(metric), str(there)
    return None


def new_file(out: Path, force: bool | None = None, inputs: Iterable[str | Path] = ()) -> None:
    """Refuse, before the work, a file that could not be written after it, or that nobody said to replace.

    Args:
        out: The file to be written.
        force: Whether it may be replaced; None where that cannot be asked for.
        inputs: What is read.

    Raises:
        UserError: It is there already, is one of the inputs or a folder, or cannot be written.
    """
    _check_file(out)
    make_folder_of(out)
    for used in inputs:
        refuse_input(out, used)
    if out.exists() and not force:
        remedy = "" if force is None else " or say force=true"
        raise UserError(f"{out}: is there already; choose another out=FILE{remedy}")


def write(out: Path, record: dict[str, Any]) -> None:
    """Write the results file in one step.

    Raises:
        UserError: There is no room, or no permission.
    """
    write_text(out, json.dumps(record, indent=2, allow_nan=False) + "\n", REMEDY)


def publish(candidates: Sequence[Path], record: dict[str, Any], force: bool) -> Path:
    """Write a complete record at the first name that is its own; another evaluation may have come in between.

    One at a time in a folder: two that end at once would find the same name free.

    Raises:
        UserError: Without `force` another result is there.
    """
    with alone_in(candidates[0].absolute().parent):
        out = place(candidates, record)
        check_after(out, record, force)
        write(out, record)
    return out


def read_record(file: Path) -> dict[str, Any] | None:
    """The record in a results file, or None where the file holds something else."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        identity(record)
        figures = record["figures"].values()
        return record if all(isinstance(value, int | float) for value in figures) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def identity(record: dict[str, Any]) -> tuple[Any, ...]:
    """What identifies an evaluation: samples and their prompts, reference, network, metrics, resampling."""
    network = record["features"].get("options", {})
    prompts = [run["samples"].get("prompts_sha256") for run in record.get("runs", [record])]
    return (*_compared(record), prompts, network, record["metrics"], record.get("resamples", 0))
