"""Labels of sets whose captions are wanted: read where they can be, and no fault where not."""

import json

import pytest
from image_sources import png, write_tables, write_tar

from dit_shd.core.errors import UserError
from dit_shd.data.sources.base import Selection
from dit_shd.data.sources.captions import Captioned
from dit_shd.data.sources.detect import open_source


def beside_folders(root):
    for name in ("x/0", "y/0", "loose"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / f"{name}.png").write_bytes(png(1))
        (root / f"{name}.txt").write_text("a")


def one_number(root):
    for name in ("01", "1"):
        (root / name).mkdir()
        (root / name / "0.png").write_bytes(png(1))
        (root / name / "0.txt").write_text("a")


def metadata(*labels):
    def write(root):
        for number in range(len(labels)):
            (root / f"{number}.png").write_bytes(png(number))
        rows = [{"file_name": f"{number}.png", "text": "a", "label": label} for number, label in enumerate(labels)]
        (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))

    return write


def parquet(*labels):
    def write(root):
        pa = pytest.importorskip("pyarrow")
        from pyarrow.parquet import write_table

        count = len(labels)
        write_table(pa.table({"image": [png(1)] * count, "text": ["a"] * count, "label": labels}), root / "a.parquet")

    return write


def saved(*labels):
    def write(root):
        datasets = pytest.importorskip("datasets")
        rows = {"image": [{"bytes": png(1), "path": None}] * len(labels), "text": ["a"] * len(labels)}
        data = datasets.Dataset.from_dict({**rows, "labels": labels}).cast_column("image", datasets.Image())
        data.save_to_disk(str(root))

    return write


def tar_of_classes(*labels):
    def write(root):
        files = {f"{i}.{kind}": data for i, cls in enumerate(labels) for kind, data in
                 (("png", png(i)), ("txt", b"a"), ("cls", cls))}  # fmt: skip
        write_tar(root / "a.tar", files)

    return write


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (beside_folders, "images in class folders or without any"),
        (one_number, "classes of different numbers"),
        (metadata("cat", "", "cat"), "a row without file_name or label"),
        (metadata([1, 2], [1]), "whole numbers or texts as labels throughout, found list"),
        (parquet(0.1, 0.2), "found float"),
        (parquet(1, None), "found NoneType"),
        (saved([0, 1], [1], []), "found list"),
        (tar_of_classes(b"cat", b"dog"), "a whole number in each .cls"),
    ],
)
def test_labels_that_cannot_be_read_are_no_fault_where_captions_are_wanted(tmp_path, write, reason):
    write(tmp_path)
    with pytest.raises(UserError, match=reason):
        open_source(str(tmp_path))
    source = open_source(str(tmp_path), Selection(labels=False))
    assert source.classes == ("all",) and not source.labels.any() and len(source.labels) == len(source)
    assert Captioned(source, source.texts(None)).captions == ["a"] * len(source)
    (note,) = [note for note in source.notes if note.startswith("labels are not used, all images are of one class: ")]
    assert reason in note and source.raw(0) and source.sha256()


@pytest.mark.parametrize(
    "write", [metadata("cat", "dog"), parquet(1, 0), saved("cat", "dog"), tar_of_classes(b"1", b"0")]
)
def test_a_set_whose_labels_can_be_read_is_the_same_one_where_captions_are_wanted(tmp_path, write):
    """It goes on where it was begun."""
    write(tmp_path)
    one, other = (open_source(str(tmp_path), Selection(labels=labels)) for labels in (True, False))
    assert one.classes == other.classes and len(one.classes) == 2 and one.sha256() == other.sha256()


def test_a_column_of_labels_that_is_named_is_read_or_refused(tmp_path):
    parquet(0.1, 0.2)(tmp_path)
    with pytest.raises(UserError, match="found float"):
        open_source(str(tmp_path), Selection(label_column="label", labels=False))


def test_tables_with_other_names_of_classes_are_one_set_where_captions_are_wanted(tmp_path):
    write_tables(tmp_path, {"0.parquet": 0, "1.parquet": 1}, {"0.parquet": ["a", "b"], "1.parquet": ["b", "a"]})
    with pytest.raises(UserError, match="the same names of classes"):
        open_source(str(tmp_path))
    assert open_source(str(tmp_path), Selection(labels=False)).classes == ("all",)
