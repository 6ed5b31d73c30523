"""results.jsonl: one row for each cell that has ended, in order of the cells, failures too.

A row is first written beside its cell, whole, and then taken into results.jsonl, so that cells of several processes
and machines can end at once.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from dit_shd.core.errors import UserError
from dit_shd.core.files import write_text
from dit_shd.core.lock import Lock
from dit_shd.study.design import Cell, Study

RESULTS = "results.jsonl"
ROW = "row.json"
LOCK = ".results.lock"
REFERENCE = "reference of"
"""Before an evaluator's name: the key of its reference's hash among a row's versions."""
NETWORK = "network of"
"""Likewise of its feature network's weights."""
PROGRAM = "program of"
"""Likewise of the files that its program's words name."""
DRAWN = "drawn by"
"""Before what samples are drawn by and a study names by a path: likewise of that."""
WEIGHTS = "weights of"
"""Before a teacher's name, or `model` and that of one that is scored as it is: likewise of its weights."""


@dataclass(frozen=True)
class CellResult:
    """One row."""

    cell: int
    variant: str
    seed: int
    sha256: str
    """Of what was asked for; see Cell."""
    status: str
    """done or failed."""
    error: str = ""
    failures: list[str] = field(default_factory=list)
    """Errors of earlier tries."""
    config_sha256: str = ""
    """Of the run's resolved config, every default written out, without the place of the run."""
    figures: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """Stage -> seconds on the clock."""
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    uncounted: list[str] = field(default_factory=list)
    """Stages that were killed once: what they had taken by then is in no number."""
    memory_mib: float = 0.0
    """The largest resident memory of a command; see Usage."""
    curve: dict[str, list[float | None]] = field(default_factory=dict)
    """Term -> its values at curve["step"]; None where it has none."""
    versions: dict[str, str] = field(default_factory=dict)
    data: list[float] = field(default_factory=list)
    """What the run learned from: the number of samples, then a glance at some of them."""
    early: str = ""
    """Of which step the training/... figures are, where the run went on from there: "step 3 of 4"."""
    finished: str = ""
    """Date and time, UTC."""

    @property
    def done(self) -> bool:
        return self.status == "done"

    @property
    def cpu_hours(self) -> float:
        return sum(self.cpu_seconds.values()) / 3600


@dataclass(frozen=True)
class Progress:
    """A study, its cells, and the rows of those that have ended."""

    study: Study
    cells: Sequence[Cell]
    results: dict[Cell, CellResult]
    others: int
    """Rows of results.jsonl that belong to no cell: of another config, or of variants that are no more."""


def read_results(file: Path) -> list[CellResult]:
    """The rows of a results.jsonl; none where there is no such file.

    Raises:
        UserError: It holds something else.
    """
    if not file.exists():
        return []
    rows = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            row = CellResult(**json.loads(line))
            if not all(isinstance(value, (int, float)) for value in row.figures.values()):
                raise ValueError("figures are no numbers")
            rows.append(replace(row, curve={key: list(map(rounded, values)) for key, values in row.curve.items()}))
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{file}:{number}: wanted a row of a study, found something else ({error})") from error
    return rows


def rounded(value: float | None) -> float | None:
    """A point of a curve as it is kept: four digits."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def write_row(folder: Path, result: CellResult) -> None:
    """Write the row of a cell beside it."""
    write_text(folder / ROW, json.dumps(asdict(result)))


def collect(file: Path, folders: Iterable[Path]) -> list[CellResult]:
    """Take the rows of cells into results.jsonl and give all of its rows; newer rows of a cell replace older ones.

    Where another process is doing the same, its next call writes them.
    """
    cells = [row for folder in folders if (folder / ROW).is_file() for row in read_results(folder / ROW)]
    try:
        lock = Lock(file.with_name(LOCK), "dit-shd study")
    except UserError:
        return _merged(read_results(file), cells)
    with lock:
        before = read_results(file)
        rows = _merged(before, cells)
        if rows != before:
            write_text(file, "".join(json.dumps(asdict(row)) + "\n" for row in rows))
        return rows


def _merged(rows: Iterable[CellResult], newer: Iterable[CellResult]) -> list[CellResult]:
    """Rows in their order; of two of a cell the done one, else the one that ended later, else the one beside the cell.

    A cell may have failed here and be done in the rows of another machine.
    """
    every: dict[tuple[str, int, str], CellResult] = {}
    for row in sorted((*rows, *newer), key=lambda row: (row.done, row.finished)):
        every[_key(row)] = row
    return sorted(every.values(), key=lambda row: (row.cell, row.variant, row.seed))


def of_cells(rows: Iterable[CellResult], cells: Sequence[Cell]) -> dict[Cell, CellResult]:
    """Cell -> its row, for the cells that have one; rows of another config are no rows of theirs."""
    known: Mapping[tuple[str, int, str], CellResult] = {_key(row): row for row in rows}
    keys = {cell: (cell.variant, cell.seed, cell.sha256) for cell in cells}
    return {cell: known[key] for cell, key in keys.items() if key in known}


def _key(row: CellResult) -> tuple[str, int, str]:
    return row.variant, row.seed, row.sha256
