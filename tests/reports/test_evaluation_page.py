"""The page of an evaluation: self-contained, nothing from elsewhere, nothing unescaped."""

import io
import os

import numpy as np
import pytest
from evaluating import pictures, refused, run
from pages import images_of, words_of
from PIL import Image

from dit_shd.evaluation.features.digits import DigitsFeatures
from dit_shd.reports.figures.images import thumbnails
from dit_shd.reports.tables import number


def test_the_page_shows_figures_classes_neighbours_and_who_is_inside(files):
    record = run(files)
    page = (files["samples"].parent / "results.html").read_text(encoding="utf-8")
    words = words_of(page)
    for name, value in record["figures"].items():
        assert f"<td>{name}</td><td>{number(value)}</td>" in words
    assert "<td>FD(digits) of real images</td>" in words and '<tr class="scale">' in words
    assert "25 reference images score" in words, "half of the reference: there are fewer than samples"
    assert "ADM-comparable: no: features digits are not the 2015 Inception" in words
    assert "".join(f"<span>{label}</span>" for label in range(10)) in words
    assert words.count('<svg class="chart"') == 2
    outside = round((1 - record["figures"]["precision"]) * 40)
    assert outside > 0
    charts = words.split('<svg class="chart"')[1:]
    assert charts[0].count('class="dot s0"') == outside
    assert f"{record['figures']['precision']:.0%} of the samples lie among the reference" in words
    assert f"{outside} of {outside} samples outside the reference" in words
    assert record["samples"]["sha256"] in words
    assert record["reference"]["sha256"] in words
    assert len(images_of(page)) == 1 + 1 + 2


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
    assert '<svg class="chart"' not in words
    assert "statistics: network_sha256" in words


def test_a_full_disk_keeps_the_results_and_names_the_page(files):
    part = files["samples"].parent / f".results.html.{os.getpid()}.dit_shd.part"
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
    assert all(f">{path}</td>" in words for path in paths)


@pytest.mark.parametrize(("shape", "size"), [((300, 200, 3), (64, 96)), ((8, 8, 1), (96, 96))])
def test_thumbnails_are_of_one_size(shape, size):
    sheet = Image.open(io.BytesIO(thumbnails(pictures(3, 0, shape), 2)))
    assert sheet.size == (2 * (size[0] + 2) + 2, 2 * (size[1] + 2) + 2)
