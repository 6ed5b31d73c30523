"""Pages from rows alone, and the experiments that ship."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from dit_shd.core.config import make
from dit_shd.reports.study_page import write_study_page
from dit_shd.study.analysis import analyse
from dit_shd.study.checks import check_cells
from dit_shd.study.design import cells_of, read_study
from dit_shd.study.evidence import claims_summary, read_evidence, study_text
from dit_shd.study.report import notes, report_of, variants_table
from dit_shd.study.results import CellResult, of_cells, read_results
from dit_shd.training.config import TrainConfig

STUDIES = sorted((Path(__file__).parents[2] / "experiments").glob("*/study.yaml"))
VALUES = {
    "title": "Two losses",
    "question": "Which one?",
    "config": "../base.yaml",
    "grid": {"loss": {"output": {}, "shd": {"losses": [{"name": "shd"}]}}},
    "seeds": [0, 1, 2],
    "relevant": 0.5,
    "claims": [{"text": "SHD helps", "source": "table 5", "better": "shd", "than": "output"}],
}


@pytest.fixture
def evidence(tmp_path):
    """A study of which five of six cells have ended, one of them badly."""
    folder = tmp_path / "one"
    folder.mkdir()
    (tmp_path / "base.yaml").write_text("steps: 3\n")
    (folder / "study.yaml").write_text(yaml.safe_dump(VALUES, sort_keys=False))
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "study.yaml").write_text("no study: yet\n")
    cells = cells_of(read_study(folder / "study.yaml"), folder / "study.yaml")
    rows = []
    for cell in cells[:5]:
        value = 9.0 + cell.seed - (2.0 + 0.1 * cell.seed) * (cell.variant == "shd")
        known = {"cell": cell.number, "variant": cell.variant, "seed": cell.seed, "sha256": cell.sha256}
        costs = {"cpu_seconds": {"train": 3600.0}, "memory_mib": 500, "versions": {"commit": "abc"}}
        rows.append(CellResult(**known, **costs, status="done", figures={"FD(x)": value}))
    rows[4] = CellResult(**known, status="failed", error="no | memory")
    (folder / "results.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    return read_evidence(tmp_path)


def test_a_claim_has_its_verdict_figure_interval_and_n(evidence):
    (claim,) = claims_summary(evidence).splitlines()[2:]
    cells = [cell.strip() for cell in claim.strip("|").split("|")]
    assert cells[:7] == [
        "SHD helps", "table 5", "**not all seeds yet**", "FD(x)", "7.45 against 9.50", "−2.05", "−2.69 to −1.41",
    ]  # fmt: skip
    assert cells[7] == cells[6], "there is one comparison only"
    assert cells[10:] == ["2", "one"]


def test_a_study_says_what_it_took_and_what_failed(evidence, tmp_path):
    text = study_text(evidence[0], tmp_path)
    for words in (
        "## Two losses",
        "Which one?",
        "dit-shd study one/study.yaml",
        "5 of 6 cells have ended, 1 of them failed; 4.00 CPU hours",
        "Made with commit abc.",
        "| output | 2 (+1 failed) | 9.50 ± 0.71 |",
        "no \\| memory",
    ):
        assert words in text, words


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.parent.name)
def test_an_experiment_that_ships_is_a_study_of_its_rows(file):
    """Its cells are runs that training takes, and no row of results.jsonl is of another config."""
    study = read_study(file)
    cells = cells_of(study, file)
    check_cells(study, cells)
    for cell in cells:
        make(TrainConfig, dict(cell.training))
    rows = read_results(file.with_name("results.jsonl"))
    assert len(of_cells(rows, cells)) == len(rows)


def test_a_variant_without_the_deciding_figure_is_a_blank_and_hides_no_other(evidence):
    """As of rows of an earlier version, whose teacher had none."""
    progress = evidence[0].progress
    rows = [replace(row, figures={}) if row.variant == "shd" else row for row in progress.results.values()]
    found = analyse(progress.study, rows)
    table = variants_table(found)
    place = [name for name, _ in table.headings].index("FD(x)")
    assert [row[place] for row in table.rows] == ["9.50 ± 0.71", ""]
    shown = notes(replace(progress, results=dict(zip(progress.results, rows))), found)
    assert "Rows without FD(x), which decides, are left out of the comparisons." in shown


def test_the_page_of_rows_of_several_machines_names_the_versions_of_each(evidence, tmp_path):
    one = evidence[0]
    for seed, row in enumerate(one.analysis.rows):
        row.versions.update(torch=f"2.{seed}.0", commit="abcdef" * 10)
    report = report_of(one.progress, one.analysis, tmp_path, lambda cell: tmp_path / cell.name)
    write_study_page(report, tmp_path / "study.html")
    page = (tmp_path / "study.html").read_text()
    assert all(f"torch 2.{seed}.0" in page for seed in range(4)), "as text, however long"


def test_seeds_of_models_that_are_scored_as_they_are_are_those_of_sampling(evidence):
    progress, analysis = evidence[0].progress, evidence[0].analysis
    with_models = replace(progress, study=replace(progress.study, models={"teacher": "asset:x"}))
    assert not any("Scored as they are" in note for note in notes(progress, analysis))
    assert "Scored as they are, by seeds of sampling and not of training: teacher." in notes(with_models, analysis)
