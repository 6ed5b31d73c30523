"""The page of a study: of real runs, with nothing to compare, and where a file lies already."""

import numpy as np
import pytest
import yaml
from pages import words_of
from studies import VALUES, calls

from dit_shd.cli.commands.study import show
from dit_shd.cli.program import main
from dit_shd.core.yaml_files import read_yaml
from dit_shd.study.report import signed
from dit_shd.study.results import read_results
from dit_shd.study.runner import Runner


def test_a_study_that_compares_nothing_has_its_tables_and_page(study, capsys):
    """Of tuning, say, without baseline and claims: it ended in a TypeError when all cells had ended."""
    config = study(baseline={})
    runner = Runner(config, lambda line: None)
    show(runner, runner.run())
    page = config.study.with_suffix(".html").read_text()
    assert "4 of 4 cells have ended" in capsys.readouterr().out
    assert "<h2>Variants" in page and "<h2>Differences" not in page


def test_a_file_of_somebody_else_where_the_page_goes_is_not_overwritten(study, capsys):
    config = study()
    page = config.study.with_suffix(".html")
    page.write_text("my notes")
    assert main(["study", str(config.study)]) == 2 and not calls()
    assert "holds something else; move it" in capsys.readouterr().err and page.read_text() == "my notes"
    page.unlink()
    page.mkdir()
    assert main(["study", str(config.study)]) == 2 and "holds something else; move it" in capsys.readouterr().err
    page.rmdir()
    assert [main(["study", str(config.study)]) for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("sampled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_study_of_real_runs_ends_in_a_page(sampled, tmp_path, monkeypatch, root, capsys):
    """Two losses, 20 steps, by the command line alone; a figure of training's evaluation, or two seeds' of samples."""
    monkeypatch.chdir(tmp_path)
    base = {**read_yaml(root / "experiments" / "digits_student.yaml"), "steps": 20, "batch_size": 2, "log_every": 4}
    base |= {"check_teacher": "no", "checkpoint_every": 20}
    images = {"count": 20, "steps": 2, "labels": "balanced"}
    scored = {"features": "digits", "reference": "digits:validation"}
    values = {
        **VALUES,
        "seeds": [1, 2] if sampled else [1],
        "grid": {"loss": {"output": {}, "shd": {"losses": [*base["losses"], {"name": "shd", "weight": 0.1}]}}},
        "sampling": images if sampled else {},
        "evaluators": {"digits": scored} if sampled else {},
        "claims": [{"text": "Attention helps", "source": "table 5", "better": "shd", "than": "output"}],
    }
    if not sampled:
        base |= {
            "validate_every": 20,
            "task": {"evaluation": {**images, **scored, "evaluate": {"metrics": ["frechet"]}}},
        }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    assert main(["study", "study.yaml", "workers=2"]) == 0, capsys.readouterr()
    rows = read_results(tmp_path / "results.jsonl")
    cells = 2 * len(values["seeds"])
    assert [row.status for row in rows] == ["done"] * cells
    found = [row.figures["FD(digits)" if sampled else "training/FD(digits)"] for row in rows]
    assert np.isfinite(found).all()
    assert len(set(found)) == cells
    assert [row.curve["step"] for row in rows] == [[4, 8, 12, 16, 20]] * cells
    assert "plain/shd" in rows[1].curve and "plain/shd" not in rows[0].curve
    difference = np.mean(np.subtract(found[1::2], found[::2]))
    assert f" {signed(difference)} " in capsys.readouterr().out
    page = (tmp_path / "study.html").read_text()
    assert words_of(page).count("<svg") >= 3 and page.count("<img") == 2 * sampled
    for words in (
        "Attention helps",
        "Every seed",
        "Cost against quality",
        "Loss curves",
        f"{cells} of {cells} cells have ended",
    ):
        assert words in page
    assert (tmp_path / "samples" / "shd.png").is_file() == sampled
