"""Which files of a folder are images."""

import os

import numpy as np
import pytest
from encoded import pictures, write_folder
from image_sources import labels_by_name, notes, pngs, write_tables

from dit_shd.core.errors import UserError
from dit_shd.data.sources.base import Selection
from dit_shd.data.sources.detect import open_source
from dit_shd.data.sources.listing import SYSTEM


def test_hidden_tables_are_not_read(tmp_path):
    hidden = [".cache/train-00000-of-00001.parquet", "data/.train-00001-of-00002.parquet"]
    root = write_tables(tmp_path, {"data/train-00000-of-00001.parquet": 0, **dict.fromkeys(hidden, 1)})
    source = open_source(str(root))
    assert source.labels.tolist() == [0, 0]
    assert "left out: 2" in notes(source) and "hidden" in notes(source)


def test_what_systems_leave_behind_is_no_class(tmp_path):
    root = pngs(tmp_path, "a/0.png", "b/1.png", "b/@eaDir/1.png/thumb.jpg", ".ipynb_checkpoints/0.png", "a/._0.png")
    for name in [*SYSTEM, "__MACOSX", "empty", ".Trash-1000", "logs/deep"]:
        (root / name).mkdir(parents=True)
    (root / "logs" / "x.txt").write_text("x")
    source = open_source(str(root))
    assert source.classes == ("a", "b")
    assert labels_by_name(source) == {"a/0.png": 0, "b/1.png": 1}
    assert "no classes: 2 (empty, logs), folders without an image" in notes(source)
    assert "left out: 3 (" in notes(source) and "hidden" in notes(source)
    assert "b/@eaDir/1.png/thumb.jpg" in notes(source) or f"left out: {len(SYSTEM) + 2} (" in notes(source)
    assert "1 files that are no images (1 .txt)" in notes(source)


def test_pictures_that_are_not_read_and_links_are_told(tmp_path):
    root = pngs(tmp_path / "set", "a/0.PNG", "a/1.jfif", "a/2.Jpe", "b/3.pgm", "b/4.tiff")
    (root / "c").mkdir()
    for link in ("c/again", "z"):
        (root / link).symlink_to(root / "a")
    (root / "c" / "up").symlink_to(tmp_path)
    pngs(tmp_path / "elsewhere", "5.png")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "elsewhere")
    (root / "d").symlink_to(tmp_path / "elsewhere")
    source = open_source(str(root), Selection(follow_links=True))
    assert labels_by_name(source) == {
        "a/0.PNG": 0, "a/1.jfif": 0, "a/2.Jpe": 0, "b/3.pgm": 1, "d/5.png": 2,
    }  # fmt: skip
    assert "left out: 1 .tiff, a kind of picture that is not read; save them as png" in notes(source)
    assert "left out: 4 (c/again, c/up, d/circle, ...) links to folders that are here anyway" in notes(source)


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    root, real = pngs(tmp_path, "a/0.png", "b/1.png"), os.scandir

    def refuses(place):
        if str(place).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(place))
        return real(place)

    monkeypatch.setattr(os, "scandir", refuses)
    with pytest.raises(UserError, match=r"images: .*/b cannot be read \(Permission denied\)"):
        open_source(str(root))


def test_links_are_followed_on_request(tmp_path):
    write_folder(tmp_path / "elsewhere", pictures(2), np.zeros(2, int))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="set/a is a link; follow_links=true follows links"):
        open_source(str(tmp_path / "set"))
    source = open_source(str(tmp_path / "set"), Selection(follow_links=True))
    assert len(source) == 2
    assert source.raw(0).is_file()
