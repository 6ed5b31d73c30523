"""Class names as numbers."""

import json
import re

import numpy as np
import pytest
from encoded import pictures, write_folder
from image_sources import labels_by_name, notes, pngs

from dit_shd.core.errors import UserError
from dit_shd.data.sources.detect import open_source
from dit_shd.data.sources.numbering import renumber


def test_class_folders_that_are_numbers_are_in_their_order(tmp_path):
    for name in ("0", "2", "10"):
        write_folder(tmp_path / name, pictures(1), np.zeros(1, int))
    (tmp_path / "10" / "notes.txt").write_text("x")
    (tmp_path / ".hidden").mkdir()
    source = open_source(str(tmp_path))
    assert source.classes == ("0", "2", "10")
    assert {source.name(i).split("/")[0]: int(label) for i, label in enumerate(source.labels)} == {
        "0": 0, "10": 2, "2": 1,
    }  # fmt: skip
    assert any("1 files" in note and ".txt" in note for note in source.notes)


@pytest.mark.parametrize(
    ("names", "wanted", "note"),
    [
        ([str(i) for i in range(11)], [str(i) for i in range(11)], None),
        (["00", "01", "02"], ["00", "01", "02"], None),
        (["0", "3", "10"], ["0", "3", "10"], "labels are places in the order of the classes, .* numbers: 3 is label 1"),
        (["0", "2", "10", "x"], ["0", "10", "2", "x"], "in the order of text, 10 before 2"),
        (["Cat", "cat", "dog"], ["Cat", "cat", "dog"], "names hardly differ are classes of their own: Cat and cat"),
        (["é", "e\u0301", "x"], ["e\u0301", "x", "é"], "names hardly differ"),
        (["2", "٣"], ["2", "٣"], None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["folders", "table", "metadata"])
def test_the_order_of_classes(tmp_path, names, wanted, note, kind):
    if kind == "folders":
        source = open_source(str(pngs(tmp_path, *(f"{name}/0.png" for name in names))))
        assert labels_by_name(source) == {f"{name}/0.png": wanted.index(name) for name in names}
    elif kind == "table":
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pa.table({"image": [b"x"] * len(names), "label": names}), tmp_path / "x.parquet")
        source = open_source(str(tmp_path / "x.parquet"))
        assert source.labels.tolist() == [wanted.index(name) for name in names]
    else:
        root = pngs(tmp_path, *(f"{i:02d}.png" for i in range(len(names))))
        rows = [json.dumps({"file_name": f"{i:02d}.png", "label": name}) for i, name in enumerate(names)]
        (root / "metadata.jsonl").write_text("\n".join(rows))
        source = open_source(str(root))
        assert source.labels.tolist() == [wanted.index(name) for name in names]
    assert list(source.classes) == wanted
    assert re.search(note, notes(source)) if note else "classes" not in notes(source)


def test_one_number_is_not_two_classes(tmp_path):
    with pytest.raises(UserError, match="wanted classes of different numbers, found 01 and 1; rename"):
        open_source(str(pngs(tmp_path, "01/0.png", "1/0.png", "2/0.png")))


def test_one_folder_around_the_classes_is_told(tmp_path):
    source = open_source(str(pngs(tmp_path, "photos/cat/0.png", "photos/dog/1.png")))
    assert source.classes == ("photos",)
    assert "all images are of the class photos; if the folders in it are the classes" in notes(source)


def test_other_numbers_leave_no_remark_on_those_before(tmp_path):
    source = renumber(open_source(str(pngs(tmp_path, "0/0.png", "3/0.png", "10/0.png"))), {"0": 5, "3": 7, "10": 1})
    assert dict(zip(source.classes, range(8)))["3"] == 7
    assert "labels are places" not in notes(source)
    assert "classes with a name: 3 of 8" in notes(source)


def test_classes_of_one_name_cannot_be_renumbered(tmp_path):
    write_folder(tmp_path / "crane", pictures(1), np.zeros(1, int))
    source = open_source(str(tmp_path))
    source.classes = ("crane", "dog", "crane")
    with pytest.raises(UserError, match="whose classes have different names, found 'crane' twice"):
        renumber(source, {"crane": 5, "dog": 3})
