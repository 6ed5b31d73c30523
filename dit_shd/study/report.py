"""A study's analysis as the values of its page and of the printed table."""

import json
import math
from collections.abc import Callable
from pathlib import Path

from dit_shd.core.environment import command
from dit_shd.data.glance import alike
from dit_shd.distillation.teachers import TEACHER
from dit_shd.reports.study_page import StudyReport, Table
from dit_shd.reports.tables import number
from dit_shd.study.analysis import Analysis, Comparison, Variant, verdict_of
from dit_shd.study.design import Cell
from dit_shd.study.origins import START
from dit_shd.study.pictures import sample_grids
from dit_shd.study.results import DRAWN, NETWORK, PROGRAM, REFERENCE, WEIGHTS, Progress
from dit_shd.study.statistics import Summary


def report_of(progress: Progress, analysis: Analysis, folder: Path, place: Callable[[Cell], Path]) -> StudyReport:
    """The page's values.

    Args:
        progress: The study's cells and rows.
        analysis: The analysis of those rows.
        folder: Keeps the grids of samples, so that a page can be made anew without the cells.
        place: Gives a cell's folder.
    """
    study, done = progress.study, [v for v in analysis.variants if v.done]
    main = [name for name in analysis.figures if name == analysis.figure or name in analysis.rank_correlation]
    return StudyReport(
        title=study.title,
        question=study.question,
        state=state(progress, analysis),
        claims=claims_table(analysis),
        variants=variants_table(analysis),
        comparisons=comparisons_table(analysis),
        failures=failures_table(analysis),
        notes=notes(progress, analysis),
        dots={name: {v.name: v.by_seed(name) for v in done} for name in main},
        curves={v.name: [row.curve for row in v.done if row.curve] for v in done},
        cost={v.name: _cost(v, analysis.figure) for v in done if v.name not in study.models},
        figure=analysis.figure,
        samples=sample_grids(progress, folder, place),
        facts={"command": command(), "rows": "results.jsonl", **versions(analysis)},
    )


def state(progress: Progress, analysis: Analysis) -> str:
    """How far the study is."""
    ended, failed = len(progress.results), sum(not row.done for row in progress.results.values())
    words = f"{ended} of {len(progress.cells)} cells have ended, {failed} of them failed"
    words += f"; {analysis.cpu_hours:.2f} CPU hours"
    return words + (f" of {progress.study.cpu_hours:g} planned." if progress.study.cpu_hours else ".")


def variants_table(analysis: Analysis) -> Table:
    """Mean and standard deviation of every figure, and what a cell takes."""
    headings = [("variant", ""), ("n", "seeds")]
    headings += [(name, "") for name in analysis.figures]
    headings += [("training", "CPU s"), ("a cell", "CPU s"), ("memory", "MiB")]
    rows = []
    for variant in analysis.variants:
        count = f"{len(variant.done)}" + (f" (+{len(variant.failed)} failed)" if variant.failed else "")
        figures = [spread(variant.summary(name)) if variant.by_seed(name) else "" for name in analysis.figures]
        whole = variant.mean(lambda row: 3600 * row.cpu_hours)
        costs = [variant.training_seconds, whole, variant.mean(lambda row: row.memory_mib)]
        rows.append([variant.name, count, *figures, *("" if math.isnan(value) else f"{value:.0f}" for value in costs)])
    return Table(headings, rows)


def comparisons_table(analysis: Analysis) -> Table:
    """Differences, their intervals, and what could have been seen."""
    headings = [
        ("variant", ""),
        ("compared with", ""),
        ("n", "seeds"),
        (f"difference of {analysis.figure}", ""),
        ("95% interval", ""),
        ("corrected interval", "Holm"),
        ("p", "Holm"),
        ("detectable", ""),
        ("variant is better", ""),
    ]
    study = analysis.study
    rows = []
    for c in analysis.comparisons:
        verdict = verdict_of(c, analysis.higher_is_better, study.relevant)
        rows.append([c.variant, c.other, str(c.difference.n), *difference_cells(c), verdict])
    return Table(headings, rows)


def difference_cells(comparison: Comparison) -> list[str]:
    """Difference, its intervals, corrected p, detectable difference; dashes where one seed tells nothing."""
    d = comparison.difference
    if d.n < 2:
        return [signed(d.mean) if d.n else "–", *["–"] * 4]
    intervals = [span(d.low, d.high), span(*comparison.corrected)]
    detectable = "–" if math.isnan(d.detectable) else number(d.detectable)
    return [signed(d.mean), *intervals, f"{comparison.holm_p:.2g}", detectable]


def claims_table(analysis: Analysis) -> Table:
    """Each claim and its verdict."""
    headings = [
        ("claim", ""),
        ("verdict", ""),
        ("difference", ""),
        ("95% interval", ""),
        ("n", "seeds"),
        ("made in", ""),
    ]
    rows = []
    for judgement in analysis.judgements:
        claim, c = judgement.claim, judgement.comparison
        cells = difference_cells(c)[:2]
        rows.append([claim.text, judgement.verdict, *cells, str(c.difference.n), claim.source])
    return Table(headings, rows)


def failures_table(analysis: Analysis) -> Table:
    """Cells that failed, or did at first."""
    rows = [[r.variant, str(r.seed), r.error or "done at last", "; ".join(r.failures)] for r in analysis.rows]
    return Table(
        [("variant", ""), ("seed", ""), ("error", ""), ("earlier", "")],
        [row for row in rows if row[2] != "done at last" or row[3]],
    )


def notes(progress: Progress, analysis: Analysis) -> list[str]:
    """What a reader should know before the figures."""
    lines = []
    if progress.others:
        lines.append(f"{progress.others} rows of results.jsonl are of other configs or variants, and are not shown.")
    if progress.study.models:
        names = ", ".join(progress.study.models)
        lines.append(f"Scored as they are, by seeds of sampling and not of training: {names}.")
    figure = progress.study.figure
    if figure and analysis.figures and not any(variant.by_seed(figure) for variant in analysis.variants):
        lines.append(f"No row has the figure that decides, {figure}: they have {', '.join(analysis.figures)}.")
    elif analysis.figures and any(analysis.figure not in row.figures for v in analysis.variants for row in v.done):
        lines.append(f"Rows without {analysis.figure}, which decides, are left out of the comparisons.")
    if killed := [f"{r.variant}-seed{r.seed} ({', '.join(r.uncounted)})" for r in analysis.rows if r.uncounted]:
        lines.append(f"Costs lack what ran until it was killed: {', '.join(killed)}.")
    if early := sorted({row.early for row in analysis.rows if row.early}):
        lines.append(
            f"Figures of training/... are of {', '.join(early)}, the last that validate_every came by: choose one that "
            "divides steps."
        )
    if analysis.figure and analysis.higher_is_better is None:
        lines.append(f"Whether a higher {analysis.figure} is better: say higher_is_better in the study file.")
    for name, count in _hashes(analysis, REFERENCE).items():
        lines.append(f"The rows of evaluator {name} are of {count} references of one name: it has changed.")
    for name, count in _hashes(analysis, NETWORK).items():
        lines.append(f"The rows of evaluator {name} are of {count} sets of weights of its network: they have changed.")
    for name, count in _hashes(analysis, PROGRAM).items():
        lines.append(f"The rows of evaluator {name} are of {count} versions of its program's files: it has changed.")
    for name, count in _hashes(analysis, DRAWN).items():
        lines.append(f"The rows' samples are drawn by {count} {name} under one path: it has changed.")
    for name, count in _sets_of_weights(progress).items():
        lines.append(f"The rows are of {count} sets of weights of {name}, under one path: it has changed.")
    if (count := _sets_of_data(progress)) > 1:
        lines.append(f"The rows are of {count} sets of samples under one name of training data: they have changed.")
    for name, tau in analysis.rank_correlation.items():
        if math.isnan(tau):  # of fewer than two variants
            continue
        lines.append(f"Ranks of the variants' means by {name} and by {analysis.figure}: Kendall's tau {tau:.2f}.")
    for d in analysis.disagreements:
        numbers = [
            f"{signed(c.difference.mean)} in {figure}" + ", which may be chance" * (figure == d.uncertain)
            for figure, c in ((d.figure, d.first), (d.second_figure, d.second))
        ]
        lines.append(f"The evaluators disagree on {d.first.variant} and {d.first.other}: {'; '.join(numbers)}.")
    return lines


def _hashes(analysis: Analysis, kind: str) -> dict[str, int]:
    """Name -> how many hashes of that kind the rows have, where they have more than one."""
    known: dict[str, set[str]] = {}
    for row in analysis.rows:
        for key, value in row.versions.items():
            if key.startswith(f"{kind} "):
                known.setdefault(key.removeprefix(f"{kind} "), set()).add(value)
    return {name: len(values) for name, values in known.items() if len(values) > 1}


def _sets_of_weights(progress: Progress) -> dict[str, int]:
    """Name -> how many hashes the rows have whose config names one place for it, where they have more than one."""
    known: dict[tuple[str, str], set[str]] = {}
    for cell, row in progress.results.items():
        teacher = cell.training.get("teacher")
        places = {START: cell.training.get("from", cell.training.get("from_run"))}
        places |= teacher if isinstance(teacher, dict) else {TEACHER: teacher}
        for key, value in row.versions.items():
            if key.startswith(f"{WEIGHTS} "):
                name = key.removeprefix(f"{WEIGHTS} ")
                known.setdefault((name, str(places.get(name))), set()).add(value)
    counts: dict[str, int] = {}
    for (name, _), values in known.items():
        counts[name] = max(counts.get(name, 0), len(values))
    return {name: count for name, count in counts.items() if count > 1}


def _sets_of_data(progress: Progress) -> int:
    """The most sets of samples that runs whose config names the same data have learned from."""
    known: dict[str, list[list[float]]] = {}
    for cell, row in progress.results.items():
        sets = known.setdefault(json.dumps(cell.training.get("data"), sort_keys=True), [])
        if row.data and not any(row.data[0] == other[0] and alike(row.data[1:], other[1:]) for other in sets):
            sets.append(row.data)
    return max(map(len, known.values()), default=0)


def versions(analysis: Analysis) -> dict[str, str]:
    """Which versions the rows were made with: one line for each kind."""
    kinds = {json.dumps(row.versions): row.versions for row in analysis.rows}
    lines = [", ".join(f"{name} {value}" for name, value in kind.items() if value) for kind in kinds.values()]
    return {"versions": "; ".join(lines)}


def _cost(variant: Variant, figure: str) -> tuple[float, float, float]:
    summary = variant.summary(figure)
    return variant.training_seconds, summary.mean, summary.deviation


def spread(summary: Summary) -> str:
    """Mean and standard deviation."""
    mean = number(summary.mean)
    places = len(mean.partition(".")[2])
    return mean + (f" ± {summary.deviation:.{places}f}" if summary.n > 1 else "")


def span(low: float, high: float) -> str:
    """An interval of differences; a dash where there is none."""
    return "–" if math.isnan(low) else f"{signed(low)} to {signed(high)}"


def signed(value: float) -> str:
    """A difference with its sign."""
    return ("+" if value > 0 else "−" if value < 0 else "") + number(abs(value))
