"""The demo of text to image from end to end, very small; its commands run in this process."""

import html
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import words_of

from dit_shd.cli import demo_stages, digits_demo, text_demo
from dit_shd.cli.demo_folder import OF_TEXT, DemoConfig
from dit_shd.cli.program import main
from dit_shd.cli.text_demo import CUT, LOSSES, NAMES, TEACHER, demo
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.yaml_files import read_yaml
from dit_shd.distillation.initialisation.depth import source_of
from dit_shd.models.loading import load
from dit_shd.reports.tables import Row
from dit_shd.reports.text_demo_page import DISTANCE, RIGHT, TextScores, headline

pytest.importorskip("mlxtend")


def settings(out: Path, **values) -> DemoConfig:
    small = {"task": "text", "out": out, "steps": 2, "images": 12, "sampling_steps": 2}
    return make(DemoConfig, {**small, **values})


@pytest.fixture(scope="module", autouse=True)
def small():
    """Less data, and no new process for each command."""

    def run_here(jobs, title, parallel=2):
        for job in jobs:
            assert main(job.arguments) == 0, (title, job.name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_demo, "TRAINING_IMAGES", 32)
        patch.setattr(text_demo, "REAL_IMAGES", 60)
        patch.setattr(text_demo, "run_jobs", run_here)
        patch.setattr(demo_stages, "run_jobs", run_here)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, TextScores]:
    """The folder and the scores of one small demo."""
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, demo(settings(out))


def test_four_models_have_figures_and_costs(finished):
    _, scores = finished
    assert [row.name for row in scores.rows] == [*NAMES.values()]
    for row in scores.rows:
        assert 0 <= row.figures[RIGHT] <= 1 and math.isfinite(row.figures[DISTANCE])
        assert row.spread[RIGHT] == pytest.approx((row.figures[RIGHT] * (1 - row.figures[RIGHT]) / 12) ** 0.5)
    teacher, *students = scores.rows
    assert all(row.cost.parameters < 0.52 * teacher.cost.parameters for row in students)
    assert all(row.cost.heads == teacher.cost.heads for row in students)
    assert scores.real[RIGHT] > 0.8
    assert scores.real[DISTANCE] < min(row.figures[DISTANCE] for row in scores.rows)


def test_the_page_has_every_prompt_with_every_model(finished):
    out, scores = finished
    words = words_of((out / "report.html").read_text(encoding="utf-8"))
    prompts = (out / "prompts.txt").read_text().splitlines()
    assert len(prompts) == 12
    assert words.count("<img ") == 12 * len(NAMES)
    for prompt in prompts:
        for title in NAMES.values():
            assert f'alt="{html.escape(f"{title}: {prompt}", quote=True)}"' in words
    rights = sum(round(12 * row.figures[RIGHT]) for row in scores.rows)
    assert words.count("✓ as asked") == rights
    assert words.count("✗ not as asked") == 48 - rights


def test_the_untrained_student_is_the_start_of_the_trained_ones(finished):
    out, _ = finished
    layers = json.loads((out / "shd" / "initialisation.json").read_text())["layers"]
    cut, teacher = load(str(out / CUT)).state_dict(), load(TEACHER).state_dict()
    for name, tensor in cut.items():
        torch.testing.assert_close(tensor, teacher[source_of(name, layers)])


def test_the_students_differ_by_the_loss_alone(finished):
    out, _ = finished
    output, shd = (read_yaml(out / name / "config.yaml") for name in LOSSES)
    assert [plugin["name"] for plugin in output.pop("losses")] == ["output"]
    assert [plugin["name"] for plugin in shd.pop("losses")] == ["output", "shd"]
    assert output.pop("run") != shd.pop("run")
    assert output == shd


def test_again_reuses_everything(finished, capsys):
    out, scores = finished
    files = [*(out / n / "metrics.jsonl" for n in LOSSES), *out.glob("samples/*.npz"), out / "report.html"]
    before = [file.stat().st_mtime_ns for file in files]
    assert demo(settings(out)) == scores
    assert [file.stat().st_mtime_ns for file in files] == before
    assert capsys.readouterr().out.count("before, reused") == 4


def test_what_was_lost_is_made_again_and_nothing_else(finished):
    """As after a kill between two stages; the same seeds give the same pictures."""
    out, scores = finished
    lost, kept = out / "samples" / "shd.npz", out / "samples" / "teacher.npz"
    before, when = np.load(lost)["arr_0"], kept.stat().st_mtime_ns
    lost.unlink()
    again = demo(settings(out))
    np.testing.assert_array_equal(np.load(lost)["arr_0"], before)
    assert kept.stat().st_mtime_ns == when
    assert [row.figures for row in again.rows] == [row.figures for row in scores.rows]


def test_other_settings_and_the_other_demo_are_refused(finished):
    out, _ = finished
    with pytest.raises(UserError, match=r"steps: 2 there, 3 here.*fresh=true"):
        demo(settings(out, steps=3))
    with pytest.raises(UserError, match="holds the demo of task=text; choose another out=FOLDER"):
        digits_demo.demo(make(DemoConfig, {"out": out}))


def test_defaults_are_those_of_the_task():
    config = make(DemoConfig, {"task": "text", "steps": 7})
    assert (config.steps, config.images, config.out) == (7, OF_TEXT["images"], Path(OF_TEXT["out"]))
    assert make(DemoConfig, {}).steps == 600
    with pytest.raises(UserError, match="guidance_schedule: is for task=digits"):
        make(DemoConfig, {"task": "text", "guidance_schedule": "constant"})


def test_the_headline_says_what_was_seen():
    rows = [Row(name, None, {RIGHT: share}, {RIGHT: 0.05}) for name, share in zip("abcd", (0.8, 0.0, 0.5, 0.6))]
    first, second = headline(TextScores(rows, {}, 1))
    assert "in 80% ± 5" in first and "without training in 0% ± 5" in first
    assert second == "After distillation: “c” in 50% ± 5, “d” in 60% ± 5."
