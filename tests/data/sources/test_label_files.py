"""Labels in files beside the images."""

import csv
import json
from pathlib import Path

import pytest
from image_sources import labels_by_name, notes, pngs

from dit_shd.core.errors import UserError
from dit_shd.data.sources.base import Selection
from dit_shd.data.sources.detect import open_source

LABELS = {"00000/img0.png": 5, "00000/img1.png": 2, "00000/img2.png": 9, "00001/img3.png": 5, "00001/img4.png": 0}


def write_labels(root: Path, kind: str, labels: dict) -> Path:
    file = root / {"edm": "dataset.json", "edm mapping": "dataset.json"}.get(kind, f"metadata.{kind}")
    rows = [{"file_name": name, "caption": f"a {label}, or so", "label": label} for name, label in labels.items()]
    if kind == "edm":
        file.write_text(json.dumps({"labels": [[name.replace("/", "\\"), label] for name, label in labels.items()]}))
    elif kind == "edm mapping":
        file.write_text(json.dumps({"labels": labels}))
    elif kind == "jsonl":
        file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    elif kind == "csv":
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), file)
    return file


KINDS = ("edm", "edm mapping", "csv", "jsonl", "parquet")


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_label_files(tmp_path, kind):
    """Buckets are no classes."""
    write_labels(pngs(tmp_path, *LABELS), kind, LABELS)
    source = open_source(str(tmp_path))
    assert labels_by_name(source) == LABELS
    assert source.classes == tuple(map(str, range(10)))
    encoded = open_source(str(pngs(tmp_path / "other", *LABELS)))
    assert encoded.classes == ("00000", "00001"), "without such a file they are"


@pytest.mark.parametrize("kind", KINDS)
def test_label_files_and_images_that_do_not_match(tmp_path, kind):
    root = pngs(tmp_path, *LABELS, "00002/more.png")
    write_labels(root, kind, {**LABELS, "00003/gone.png": 1, "../outside.png": 2})
    source = open_source(str(root))
    assert labels_by_name(source) == LABELS
    assert "left out: 1 (00002/more.png) images that" in notes(source)
    assert "missing: 2 (" in notes(source) and "00003/gone.png" in notes(source)
    write_labels(root, kind, {"nothing.png": 1})
    with pytest.raises(UserError, match=r"names none of the images in the folder, but nothing\.png"):
        open_source(str(root))


def test_label_files_of_folders_of_splits(tmp_path):
    root = pngs(tmp_path, "train/0.png", "train/1.png", "test/0.png")
    write_labels(root / "train", "csv", {"0.png": 1, "1.png": 0})
    write_labels(root / "test", "csv", {"0.png": 7})
    assert labels_by_name(open_source(str(root), Selection("train"))) == {"train/0.png": 1, "train/1.png": 0}
    assert labels_by_name(open_source(str(root), Selection("test"))) == {"test/0.png": 7}


def test_a_label_file_that_says_there_are_none(tmp_path):
    root = pngs(tmp_path, *LABELS)
    (root / "dataset.json").write_text('{"labels": null}')
    source = open_source(str(root))
    assert source.classes == ("all",) and source.labels.tolist() == [0] * 5
    assert "dataset.json: there are no labels" in notes(source)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("dataset.json", "{", "dataset.json: wanted labels of images, found a broken file"),
        ("metadata.jsonl", "{", "metadata.jsonl: wanted labels or captions of images, found a broken file"),
        ("dataset.json", '{"labels": [["00000/img0.png"]]}', r"wanted \[file, whole number\] throughout"),
        ("dataset.json", '{"labels": [["00000/img0.png", [0, 1]]]}', r"wanted \[file, whole number\] throughout"),
        ("dataset.json", '{"labels": [["00000/img0.png", 1], ["00000/img0.png", 2]]}', "wanted one label for"),
        ("dataset.json", '{"labels": [["00000/img0.png", -1]]}', "wanted labels from 0 to a million, found -1"),
        ("metadata.csv", "file_name,label\n00000/img0.png,\n", "a row without file_name or label"),
        ("metadata.jsonl", '{"file_name": "00000/img0.png", "label": 0.5}', "wanted whole numbers or texts as labels"),
        ("metadata.jsonl", "[]", "a line that is no object"),
        ("metadata.parquet", "PAR1", "not a readable Parquet file"),
    ],
)  # fmt: skip
def test_wrong_label_files_are_one_line(tmp_path, name, text, message):
    (pngs(tmp_path, *LABELS) / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        open_source(str(tmp_path))
    assert "\n" not in str(error.value)


def test_labels_of_pandas_that_are_written_as_decimals_are_numbers(tmp_path):
    """As texts, 10.0 would come before 2.0."""
    root = pngs(tmp_path, *(f"{label}.png" for label in (0, 1, 2, 10)))
    rows = "".join(f"{label}.png,{label}.0,a {label}\n" for label in (0, 1, 2, 10))
    (root / "metadata.csv").write_text(f"file_name,label,name\n{rows}")
    source = open_source(str(root))
    assert labels_by_name(source) == {"0.png": 0, "1.png": 1, "2.png": 2, "10.png": 10}
    assert source.classes == tuple(map(str, range(11)))
    (root / "metadata.csv").write_text("file_name,label\n0.png,1.0\n1.png,x\n")
    assert open_source(str(root)).classes == ("1.0", "x")


def test_files_that_are_called_so_and_hold_no_labels(tmp_path):
    root = pngs(tmp_path, "a/0.png", "b/1.png")
    (root / "dataset.json").write_text('{"name": "mine"}')
    (root / "metadata.csv").write_text("file_name,caption\na/0.png,x\n")
    source = open_source(str(root))
    assert source.classes == ("a", "b")
    assert "dataset.json has no labels and is not used" in notes(source)
    assert "metadata.csv has no column of labels" in notes(source)
    with pytest.raises(UserError, match=r"label_column: .* has no column kind, it has file_name, caption"):
        open_source(str(root), Selection(label_column="kind"))
    assert open_source(str(root), Selection(label_column="caption")).classes == ("x",)
