"""One page of several evaluations: cost beside figures, images side by side."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from dit_shd.cli.commands import Command
from dit_shd.core.config import REQUIRED, checked, option
from dit_shd.core.errors import UserError
from dit_shd.core.places import Place
from dit_shd.data.sampled_weights import is_teacher, present_place
from dit_shd.evaluation import results
from dit_shd.models.export import run_values
from dit_shd.reports.comparison_page import about_result, comparison_notes, cost_columns, write_comparison_page
from dit_shd.reports.findings import left_out
from dit_shd.reports.tables import Row, figures_table, plain_table
from dit_shd.tasks import TASKS


@dataclass(frozen=True)
class CompareConfig:
    """The evaluations and the page."""

    results: list[Place] = option(
        REQUIRED, "results files of evaluate, or run folders that hold some, the teacher's first"
    )
    names: list[str] | None = option(None, "their names on the page; run or file names if left out")
    out: Path = option(Path("compare.html"), "the page")
    cost: bool = option(True, "measure parameters, operations and latency of the models the samples came from")
    force: bool = option(False, "overwrite an existing page")


class Compare(Command[CompareConfig]):
    """One page of several evaluations."""

    config = CompareConfig
    words: ClassVar = {"results": "RESULTS..."}
    words_help = "results files of evaluate, or run folders, whose newest result is taken; the teacher's first"

    def run(self, config: CompareConfig) -> None:
        compare(config)


def compare(config: CompareConfig) -> list[Row]:
    """Write the page and print its table.

    Args:
        config: The evaluations and the page.

    Returns:
        The rows of the table, the teacher's (the first file's) first.

    Raises:
        UserError: Not results files, figures of different networks, references or metrics, or a page at `out`.
    """
    config = checked(config, "compare")
    notes: list[str] = []
    config = replace(config, results=[str(_results_file(Path(text), notes)) for text in config.results])
    records = [_placed(Path(text), _read(Path(text))) for text in config.results]
    if len(records) < 2:
        raise UserError(f"results: wanted at least two results files, the teacher's first, found {len(records)}")
    names = config.names or _names(config.results, records)
    if len(names) != len(records) or len(set(names)) < len(names):
        actual = f"{len(names)}, {len(set(names))} of them different"
        raise UserError(f"names: wanted {len(records)} different ones, one for each results file, found {actual}")
    _check_comparable(config.results, records)
    results.new_file(config.out, config.force, config.results)
    rows = [
        Row(
            name,
            cost_columns(name, record, notes) if config.cost else None,
            record["figures"],
            record.get("spread", {}),
        )
        for name, record in zip(names, records)
    ]
    notes += [*left_out(rows), *comparison_notes(names, records)]
    headings, cells, _ = figures_table(rows)
    print("\n".join([plain_table(headings, cells), *(f"note: {note}" for note in notes)]))
    write_comparison_page(config.out, config.results, names, records, rows, notes)
    print(f"written to {config.out}")
    return rows


def _results_file(place: Path, notes: list[str]) -> Path:
    """A results file, or the newest one in a run folder that is of the run, not of its teacher.

    Args:
        place: The file or folder.
        notes: Takes a line on which of several was chosen.

    Raises:
        UserError: The folder holds none.
    """
    if not place.is_dir():
        return place
    files = sorted(place.rglob("*results.json"), key=lambda file: file.stat().st_mtime)
    records = {file: record for file in files if (record := results.read_record(file)) is not None}
    files = _of_the_run(records, place)
    if not files:
        raise _without_results(place)
    if len(files) > 1:
        notes.append(f"{place}: of {len(files)} results files the newest is shown, {files[-1].relative_to(place)}")
    return files[-1]


def _without_results(place: Path) -> UserError:
    """What to do about a run folder that holds no results, by what the run has learned."""
    run, task = shlex.quote(str(place)), run_values(str(place)).get("task")
    name = task.get("name") if isinstance(task, dict) else None
    learned = TASKS.find(name) if name in TASKS.names() else None
    if learned is not None and learned.measured_by:
        return UserError(
            f"{place}: has learned {name} and is not sampled from; dit-shd {learned.measured_by} RUNS... measures "
            "several in one table"
        )
    prompted = learned is not None and learned.prompted
    samples = f"{run}/{'samples.npz' if prompted else 'samples_1000_seed0.npz'}"
    words = f"prompts=prompts.txt out={samples}" if prompted else "count=1000"
    return UserError(
        f"{place}: holds no results; make some first: dit-shd sample {run} {words} and dit-shd evaluate {samples} "
        "reference=REFERENCE"
    )


def _of_the_run(records: dict[Path, dict[str, Any]], place: Path) -> list[Path]:
    """The results in a run folder whose samples are the run's; of a run that was moved, those of no teacher.

    `dit-shd evaluate` proposes to put its teacher's samples, and so their results, beside a student's.
    """
    sidecars = {file: about_result(record).get("sidecar", {}) for file, record in records.items()}
    models = {file: str(sidecar.get("run", "")) for file, sidecar in sidecars.items()}
    certain = [file for file, run in models.items() if run and Path(run).resolve().is_relative_to(place.resolve())]
    teachers, settings = {sidecar.get("teacher") for sidecar in sidecars.values()}, run_values(str(place))
    if any(is_teacher(run, settings) for run in models.values()):
        return certain or [file for file, run in models.items() if run and not is_teacher(run, settings)]
    return certain or [file for file, run in models.items() if run not in teachers] or list(records)


def _read(file: Path) -> dict[str, Any]:
    record = results.read_record(file)
    if record is None:
        content = "something else" if file.is_file() else "nothing"
        raise UserError(f"{file}: wanted a results file that dit-shd evaluate wrote, found {content}")
    return record


def _placed(file: Path, record: dict[str, Any]) -> dict[str, Any]:
    """A record whose samplers' settings name their models where they are now."""
    for entry in [run["samples"] for run in record.get("runs", [record])]:
        if "run" in entry.get("sidecar", {}):
            entry["sidecar"]["run"] = present_place(entry["sidecar"], file)
    return record


def _names(files: list[str], records: list[dict[str, Any]]) -> list[str]:
    """The run's folder if the sampler recorded it, else the samples' file; the results file if those repeat."""
    about = [about_result(record) for record in records]
    runs = [str(entry.get("sidecar", {}).get("run") or "") for entry in about]
    names = [Path(run).name or Path(entry["path"]).stem for run, entry in zip(runs, about)]
    return names if len(set(names)) == len(names) else list(files)


def _check_comparable(files: list[str], records: list[dict[str, Any]]) -> None:
    """Check that all figures are of one network, one reference and the same options."""
    first = records[0]
    for file, record in zip(files, records):
        difference = results.evaluator_difference(record, first)
        if difference is not None:
            what, here, there = difference
            raise UserError(f"{file}: wanted the {what} of {files[0]} ({there}), found {here}; evaluate again")
