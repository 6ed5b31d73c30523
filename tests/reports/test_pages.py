"""The pages: everything inside, nothing from elsewhere, nothing unescaped, and what may not be set side by side."""

import base64
import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from evaluating import pictures, refused, run
from PIL import Image

from dit_shd.cli.commands.compare import CompareConfig, compare
from dit_shd.cli.program import main
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.evaluation.features.digits import DigitsFeatures
from dit_shd.reports.evaluation_page import thumbnails
from dit_shd.reports.html import scatter
from dit_shd.reports.tables import number


def images_of(page: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/png;base64,([A-Za-z0-9+/=]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def words_of(page: str) -> str:
    words = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page)
    assert "http" not in words
    assert "<script" not in words
    assert not re.search(r'(src|href|srcset)="(?!")', words), "something is loaded from elsewhere"
    return words


# The page of one evaluation


def test_the_page_shows_figures_classes_neighbours_and_who_is_inside(files):
    record = run(files)
    page = (files["samples"].parent / "results.html").read_text(encoding="utf-8")
    words = words_of(page)
    for name, value in record["figures"].items():
        assert f"<td>{name}</td><td>{number(value)}</td>" in words
    assert "ADM-comparable: no: features digits are not the 2015 Inception" in words
    assert all(f"<figcaption>class {label}</figcaption>" in words for label in range(10))
    assert words.count("<svg") == 2
    outside = round((1 - record["figures"]["precision"]) * 40)
    assert outside > 0
    assert words.count('class="outside"') == 2
    assert f"{outside} of {outside} samples outside the reference" in words
    assert record["samples"]["sha256"] in words
    assert record["reference"]["sha256"] in words
    assert len(images_of(page)) == 10 + 1 + 2


def test_a_sample_that_is_a_copy_has_its_original_beside_it(files):
    images = pictures(40, seed=1)
    reference = pictures(50, seed=2)
    reference[17] = images[0]
    np.savez(files["samples"], images)
    np.savez(files["reference"], reference)
    run(files)
    page = (files["samples"].parent / "results.html").read_text(encoding="utf-8")
    assert "Distances to the first: 0.0000," in words_of(page)
    sheet = np.asarray(images_of(page)[1])
    assert (sheet[2:98, 2:98] == sheet[2:98, 100:196]).all()


def test_statistics_alone_make_a_page_without_neighbours(files, tmp_path):
    known = DigitsFeatures()
    np.savez(files["reference"], mu=np.zeros(64), sigma=np.eye(64), network_sha256=known.sha256)
    run(files)
    words = words_of((files["samples"].parent / "results.html").read_text(encoding="utf-8"))
    assert "Nearest reference images" not in words
    assert "<svg" not in words
    assert "statistics: network_sha256" in words


def test_a_full_disk_keeps_the_results_and_names_the_page(files):
    part = files["samples"].parent / f".results.html.{os.getpid()}.part"
    part.symlink_to("/dev/full")
    assert "results.html: cannot be written: the disk is full; make room" in refused(files)
    assert (files["samples"].parent / "results.json").is_file()


def test_a_page_of_something_else_is_never_overwritten(files, monkeypatch):
    page = files["samples"].parent / "results.html"
    page.write_text("mine")
    monkeypatch.setattr(DigitsFeatures, "extract", lambda *_: pytest.fail("the network ran"))
    assert "found a page of something else" in refused(files)
    assert "found the same file" in refused(files, out=str(page.with_name("other.html")))
    assert page.read_text() == "mine"


def test_pages_can_be_left_out(files):
    run(files, page=False)
    assert not list(files["folder"].rglob("*.html"))


def test_names_are_escaped(files):
    odd = files["folder"] / "<b>x.npz"
    np.savez(odd, pictures(40, seed=1))
    run(files, samples=str(odd))
    assert "<b>x" not in words_of((files["folder"] / "results.html").read_text(encoding="utf-8"))


def test_a_page_of_several_files(files):
    paths = []
    for seed in range(2):
        paths.append(str(files["folder"] / f"{seed}.npz"))
        np.savez(paths[-1], pictures(40, seed=seed))
    record = run(files, samples=paths)
    words = words_of((files["folder"] / "results.html").read_text(encoding="utf-8"))
    name = "FD(digits)"
    assert f"<td>{name}</td><td>{number(record['figures'][name])}</td><td>{number(record['spread'][name])}" in words
    assert all(f"<td>{path}</td>" in words for path in paths)


@pytest.mark.parametrize(("shape", "size"), [((300, 200, 3), (64, 96)), ((8, 8, 1), (96, 96))])
def test_thumbnails_are_of_one_size(shape, size):
    sheet = Image.open(io.BytesIO(thumbnails(pictures(3, 0, shape), 2)))
    assert sheet.size == (2 * (size[0] + 2) + 2, 2 * (size[1] + 2) + 2)


def test_points_outside_are_told_from_those_inside():
    points = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 0.5]])
    svg = scatter(points, points, np.array([True, False, True]), 'a "title"')
    assert svg.count("<circle") == 6
    assert svg.split('class="outside"')[1].count("<circle") == 1
    assert "&quot;title&quot;" in svg
    assert "nan" not in scatter(points[:1], points[:1], np.array([True]), "one point")


# The page of several models


@pytest.fixture
def two(files, teacher) -> list[str]:
    """Results of two files, the first of which says which model it came from."""
    found = []
    for i, seed in enumerate((1, 9)):
        samples = files["folder"] / f"{'teacher' if i == 0 else 'student'}.npz"
        np.savez(samples, pictures(40, seed=seed))
        if i == 0:
            told = {"run": str(teacher), "steps": 50, "guidance": 1.0}
            samples.with_suffix(".json").write_text(json.dumps(told))
        found.append(str(files["folder"] / f"{i}.json"))
        run(files, samples=str(samples), out=found[-1], page=False)
    return found


def compared(results: list[str], folder: Path, **values) -> list:
    return compare(make(CompareConfig, {"results": results, "out": str(folder / "page.html"), **values}))


def test_cost_stands_beside_figures(two, tmp_path, capsys):
    rows = compared(two, tmp_path)
    assert [row.name for row in rows] == ["teacher", "student"]
    assert rows[0].cost.heads == 4
    assert rows[0].cost.parameters > 0
    assert rows[1].cost is None
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    words = words_of(page)
    assert f"<td>{rows[0].cost.parameters / 1e6:.2f}</td>" in words
    assert number(rows[1].figures["KID(digits)"]) in words
    assert "student: no cost, because no file beside the samples records their model" in words
    assert "sampled with different steps: teacher 50, student not recorded" in words
    assert "one training seed each" in words
    assert len(images_of(page)) == 2
    assert "FD(digits)" in capsys.readouterr().out


def test_another_model_than_the_sampled_one_has_no_cost(two, tmp_path):
    record = json.loads(Path(two[0]).read_text())
    record["samples"]["sidecar"]["model_sha256"] = "0" * 64
    Path(two[0]).write_text(json.dumps(record))
    assert compared(two, tmp_path)[0].cost is None
    assert "has changed since the images were sampled" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["features"].update(sha256="1"), "wanted the features of"),
        (lambda r: r["reference"].update(sha256="1"), "wanted the reference of"),
        (lambda r: r["metrics"][-1].update(k=7), "precision_recall has other options"),
        (lambda r: r.pop("figures"), "wanted a results file"),
        (lambda r: r["figures"].update({"FD(digits)": "NaN"}), "wanted a results file"),
    ],
)
def test_what_is_not_comparable_is_refused(two, tmp_path, change, message):
    record = json.loads(Path(two[1]).read_text())
    change(record)
    Path(two[1]).write_text(json.dumps(record))
    with pytest.raises(UserError, match=message):
        compared(two, tmp_path, cost=False)
    assert not (tmp_path / "page.html").exists()


def test_nonsense_comparisons_are_refused(two, tmp_path):
    for results, values, message in (
        (two[:1], {}, "at least two results files"),
        ([two[0], str(tmp_path / "no.json")], {}, "found nothing"),
        (two, {"names": ["one"]}, "names: wanted 2"),
    ):
        with pytest.raises(UserError, match=message):
            compared(results, tmp_path, cost=False, **values)
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        compared(two, tmp_path, cost=False)
    assert (tmp_path / "page.html").read_text() == "mine"


def test_the_command(two, tmp_path, capsys):
    assert main(["compare", *two, f"out={tmp_path / 'c.html'}", "cost=false", "names=[big, small]"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^big ", printed, re.M)
    assert re.search(r"^small ", printed, re.M)
    assert main(["compare", two[0]]) == 2
