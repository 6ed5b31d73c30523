"""Studies that have run as pages of Markdown: every claim with its verdict, figure, interval, n and cost."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dit_shd.reports.tables import markdown, number
from dit_shd.study.analysis import Analysis, Comparison, Judgement, analyse
from dit_shd.study.design import cells_of, read_study
from dit_shd.study.report import comparisons_table, difference_cells, failures_table, notes, state, variants_table
from dit_shd.study.results import RESULTS, Progress, of_cells, read_results
from dit_shd.study.statistics import summary


@dataclass(frozen=True)
class Evidence:
    """A study that has run, as far as it got."""

    file: Path
    progress: Progress
    analysis: Analysis


def read_evidence(folder: Path) -> list[Evidence]:
    """The studies of a folder of experiments that have rows, by name."""
    evidence = []
    for file in sorted(folder.glob("*/study.yaml")):
        rows = read_results(file.parent / RESULTS)
        if rows:
            study = read_study(file)
            cells = cells_of(study, file)
            results = of_cells(rows, cells)
            progress = Progress(study, cells, results, len(rows) - len(results))
            evidence.append(Evidence(file, progress, analyse(study, results.values())))
    return evidence


def claims_summary(evidence: Iterable[Evidence]) -> str:
    """One table of all claims."""
    headings = ["claim", "made in", "verdict", "figure", "means", "difference", "95% interval", "corrected interval"]
    headings += ["p (Holm)", "detectable", "n", "study"]
    rows = [_claim_row(study, judgement) for study in evidence for judgement in study.analysis.judgements]
    return markdown([(name, "") for name in headings], rows)


def _claim_row(evidence: Evidence, judgement: Judgement) -> list[str]:
    claim, comparison = judgement.claim, judgement.comparison
    n, words = comparison.difference.n, [claim.text, claim.source, f"**{judgement.verdict}**"]
    means = " against ".join(map(number, _means(evidence.analysis, comparison))) if n else "–"
    cells = [evidence.analysis.figure, means, *difference_cells(comparison), str(n), evidence.file.parent.name]
    return [*words, *cells]


def _means(analysis: Analysis, comparison: Comparison) -> list[float]:
    """The means of both variants over the seeds that both have."""
    by_seed = {variant.name: variant.by_seed(analysis.figure) for variant in analysis.variants}
    first, second = by_seed[comparison.variant], by_seed[comparison.other]
    seeds = first.keys() & second.keys()
    return [summary([values[seed] for seed in sorted(seeds)]).mean for values in (first, second)]


def study_text(evidence: Evidence, root: Path) -> str:
    """One study: its question, its variants, its differences.

    Args:
        evidence: The study.
        root: Of the repository, which the command is relative to.
    """
    study, analysis, progress = evidence.progress.study, evidence.analysis, evidence.progress
    place = evidence.file.relative_to(root)
    programs = " programs=true" if any(evaluator.program for evaluator in study.evaluators.values()) else ""
    relevant = f"{number(study.relevant)} {analysis.figure}" if study.relevant else "none was said"
    commits = sorted({row.versions.get("commit", "") for row in analysis.rows} - {""})
    parts = [
        f"## {study.title}",
        study.question,
        f"```sh\ndit-shd study {place}{programs}\n```",
        f"{state(progress, analysis)} Made with commit {', '.join(commits)}. The smallest difference that was said "
        f"beforehand to matter: {relevant}. Rows: [results.jsonl](../{place.parent}/{RESULTS}).",
        variants_table(analysis).markdown(),
        comparisons_table(analysis).markdown(),
        "\n".join(f"- {note}" for note in notes(progress, analysis)),
    ]
    failures = failures_table(analysis)
    if failures.rows:
        parts.append(failures.markdown())
    return "\n\n".join(part for part in parts if part)
