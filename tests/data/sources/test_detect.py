"""Which reader a source is read by."""

import shutil
import tarfile

import numpy as np
import pytest
from encoded import pictures, write_folder
from image_sources import labels_by_name, notes, pngs, write_tables

from dit_shd.core.errors import UserError
from dit_shd.data.sources.base import Selection
from dit_shd.data.sources.detect import open_source


def test_folders_that_say_nothing(tmp_path):
    with pytest.raises(UserError, match=r"found none \(it is empty"):
        open_source(str(tmp_path))
    write_folder(tmp_path, pictures(1), np.zeros(1, int))
    (tmp_path / "loose.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"wanted images in class folders or without any, found both .*loose\.png"):
        open_source(str(tmp_path))
    (tmp_path / "two").mkdir()
    for split in ("train", "test"):
        (tmp_path / "two" / f"{split}-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="has no Parquet files of 'validation', it has test, train"):
        open_source(str(tmp_path / "two"), Selection("validation"))
    with pytest.raises(UserError, match="not a readable Parquet file"):
        open_source(str(tmp_path / "two"))


def test_keys_that_a_source_has_no_use_for_are_refused(tmp_path):
    root = pngs(tmp_path / "set", "a/0.png", "b/1.png")
    np.savez(tmp_path / "x.npz", pictures(1))
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(root / "a" / "0.png", "0.png")
    (tmp_path / "tars").mkdir()
    shutil.copy(tmp_path / "x.tar", tmp_path / "tars")
    for name, key, what in (
        ("set", "image_column", "a folder of images"),
        ("set", "subset", "a folder of images"),
        ("x.npz", "image_column", "an npz"),
        ("x.npz", "label_column", "an npz"),
        ("x.npz", "split", "a single file"),
        ("x.tar", "label_column", r"tars, whose labels are in KEY\.cls"),
        ("tars", "label_column", r"tars, whose labels are in KEY\.cls"),
        ("tars", "subset", "a folder of tars"),
    ):
        with pytest.raises(UserError, match=rf"^{key}: wanted none for {what}, '.*', found odd"):
            open_source(str(tmp_path / name), Selection(**{key: "odd"}))


def test_pictures_and_tables_in_one_folder(tmp_path):
    root = pngs(write_tables(tmp_path / "hub", {"data/train-00000-of-00001.parquet": 0}), "assets/teaser.png")
    source = open_source(str(root))
    assert labels_by_name(source) == {"train-00000-of-00001.parquet[0]": 0, "train-00000-of-00001.parquet[1]": 0}
    assert "left out: 1 (assets/teaser.png) images beside tables" in notes(source)
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    root = pngs(tmp_path / "pictures", "a/0.png", "b/1.png")
    parquet.write_table(pa.table({"caption": ["x"]}), root / "captions.parquet")
    source = open_source(str(root))
    assert labels_by_name(source) == {"a/0.png": 0, "b/1.png": 1}
    assert "left out: 1 files that are no images (1 .parquet)" in notes(source)
