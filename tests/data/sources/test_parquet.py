"""Parquet files: columns, cells, names of classes."""

import io
import sys
import tarfile

import pytest
from encoded import pictures
from image_sources import notes, write_tables
from PIL import Image

from dit_shd.core.errors import UserError
from dit_shd.data.sources.base import BrokenImage, Selection
from dit_shd.data.sources.detect import open_source


def test_columns_by_name_and_labels_as_text(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    stream = io.BytesIO()
    Image.fromarray(pictures(1)[0]).save(stream, "png")
    animals = ["dog", "cat", "dog"]
    parquet.write_table(pa.table({"photo": [stream.getvalue()] * 3, "animal": animals}), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"), Selection(image_column="photo", label_column="animal"))
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [1, 0, 1]
    unlabelled = open_source(str(tmp_path / "a.parquet"), Selection(image_column="photo"))
    assert (unlabelled.classes, unlabelled.labels.tolist()) == (("all",), [0, 0, 0])
    assert any("no labels" in note for note in unlabelled.notes)
    with pytest.raises(UserError, match=r"image_column: .* has no column image or img .* say image_column=NAME"):
        open_source(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_columns_of_no_usual_name_by_what_hugging_face_says_of_them(tmp_path, kind):
    """Else a dataset whose classes are in `target` is of one class."""
    datasets = pytest.importorskip("datasets")
    stream = io.BytesIO()
    Image.fromarray(pictures(1)[0]).save(stream, "png")
    labels = datasets.ClassLabel(names=["cat", "dog"])
    cells = {"pixels": [{"bytes": stream.getvalue(), "path": None}] * 3, "target": [1, 0, 1]}

    def written(name, **more):
        columns = {"pixels": datasets.Image(), "target": labels, **more}
        data = datasets.Dataset.from_dict({**cells, **{key: [0, 0, 0] for key in more}}, datasets.Features(columns))
        place = tmp_path / (f"{name}.parquet" if kind == "parquet" else name)
        data.to_parquet(place) if kind == "parquet" else data.save_to_disk(place)
        return open_source(str(place))

    source = written("one")
    assert (source.classes, source.labels.tolist(), source.raw(0)) == (("cat", "dog"), [1, 0, 1], stream.getvalue())
    assert written("usual", label=datasets.Value("int64")).classes == ("0",)
    assert written("two", scene=labels).classes == ("all",)


def test_a_column_of_classes_that_has_none_for_some_images_is_said_and_not_used(tmp_path):
    """Nobody named it, as people who want captions do not."""
    datasets = pytest.importorskip("datasets")
    png = {"bytes": stored_png(), "path": None}
    columns = {"image": datasets.Image(), "genre": datasets.ClassLabel(names=["cat", "dog"])}
    for i, cells in enumerate(([1, 0, None], [1, 0, -1])):
        data = datasets.Dataset.from_dict({"image": [png] * 3, "genre": cells}, datasets.Features(columns))
        data.to_parquet(tmp_path / f"{i}.parquet")
        source = open_source(str(tmp_path / f"{i}.parquet"))
        assert source.classes == ("all",)
        assert "column genre is of classes, has none for 1 images, and is not used" in source.notes
        with pytest.raises(UserError):
            open_source(str(tmp_path / f"{i}.parquet"), Selection(label_column="genre"))


def test_tables_with_images_are_read_and_not_a_logo_beside_them(tmp_path):
    """Whatever the column is called."""
    datasets = pytest.importorskip("datasets")
    png = {"bytes": stored_png(), "path": None}
    data = datasets.Dataset.from_dict({"photo": [png] * 3}, datasets.Features({"photo": datasets.Image()}))
    data.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    (tmp_path / "logo.png").write_bytes(stored_png())
    assert len(open_source(str(tmp_path))) == 3


def test_tars_are_read_and_not_the_tables_of_captions_that_img2dataset_writes_beside_them(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name, data in (("0.jpg", stored_png()), ("0.txt", b"a cat")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    parquet.write_table(pa.table({"url": ["x"], "caption": ["a cat"], "key": ["0"]}), tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    assert len(open_source(str(tmp_path))) == 1


def stored_png():
    stream = io.BytesIO()
    Image.fromarray(pictures(1)[0]).save(stream, "png")
    return stream.getvalue()


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    for name in ("datasets", "pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    for source in ("a.parquet", "saved"):
        with pytest.raises(UserError, match=r"install it by: pip install .*\[encode\]"):
            open_source(str(tmp_path / source))


def test_cells_without_an_image():
    from dit_shd.data.sources.parquet import image_bytes

    assert image_bytes({"bytes": b"x", "path": "/etc/passwd"}) == b"x"
    for cell in (None, b"", 3, {"bytes": None, "path": "/etc/passwd"}, {"path": "/etc/passwd"}):
        with pytest.raises(BrokenImage, match=r"an empty cell|paths in cells are not followed"):
            image_bytes(cell)


def test_tables_agree_on_the_names_of_classes(tmp_path):
    files = {"train-00000-of-00002.parquet": 0, "train-00001-of-00002.parquet": 0}
    one, other = files
    root = write_tables(tmp_path, files, {one: ["cat", "dog"], other: ["dog", "cat"]})
    with pytest.raises(UserError, match=f"same names of classes .* found cat, dog in {one} and dog, cat in {other}"):
        open_source(str(root))
    write_tables(tmp_path, files, {one: ["cat", "dog"], other: ["cat", "dog"]})
    source = open_source(str(root))
    assert source.classes == ("cat", "dog")
    assert "classes without an image: 1 (dog) of 2" in notes(source)
