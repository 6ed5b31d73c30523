"""What of a folder is an image, a class, a split, a label: the same in every layout that others write."""

import csv
import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from encoded import encode, pictures
from PIL import Image
from png16 import deep_png

from dit_shd.core.errors import UserError
from dit_shd.data.latent_shards import read_index
from dit_shd.data.preprocessing import pixels
from dit_shd.data.sources.base import Selection
from dit_shd.data.sources.detect import open_source
from dit_shd.data.sources.listing import SYSTEM


def put(root: Path, *names: str) -> Path:
    """Different pictures of 8 x 8."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures(1, seed=i)[0]).save(root / name)
    return root


def labels_by_name(source) -> dict[str, int]:
    return {source.name(i): int(label) for i, label in enumerate(source.labels)}


def told(source) -> str:
    return "\n".join(source.notes)


# Tables: splits and subsets


def write_tables(root: Path, files: dict[str, int], names: dict[str, list[str]] | None = None) -> Path:
    """Parquet files of two rows; the label says in which file a row lies."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    stream = io.BytesIO()
    Image.fromarray(pictures(1)[0]).save(stream, "png")
    cells = [{"bytes": stream.getvalue(), "path": None}] * 2
    for file, label in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        table = pa.table({"image": cells, "label": [label] * 2})
        if names and file in names:
            features = {"image": {"_type": "Image"}, "label": {"names": names[file], "_type": "ClassLabel"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        parquet.write_table(table, root / file)
    return root


LAYOUTS = {
    "N of M": [f"data/{of}.parquet" for of in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")],
    "N of M and hash": [f"data/{split}-00000-of-00001-0123456789abcdef.parquet" for split in ("train", "test")],
    "plain names": ["train.parquet", "test.parquet", "validation.parquet"],
    "convert branch": ["default/train/0000.parquet", "default/train/0001.parquet", "default/test/0000.parquet"],
    "folders": ["train/part-0.parquet", "validation/part-0.parquet"],
    "delimited": ["my-train-file.parquet", "my-test-file.parquet"],
    "numbered": ["train_00000.parquet", "test_00000.parquet"],
    "other words": ["data/training/a.parquet", "data/dev/a.parquet", "data/eval/a.parquet"],
    "loose": ["train-00000-of-00001.parquet", "extra.parquet"],
    "no words": ["0000.parquet", "0001.parquet"],
    "own names": ["data/first-00000-of-00001.parquet", "data/second-00000-of-00001.parquet"],
}  # fmt: skip


@pytest.mark.parametrize("split", ["train", "test", "validation", "first"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_of_tables_are_those_of_datasets(tmp_path, layout, split):
    """The oracle loads the same folder by itself."""
    datasets = pytest.importorskip("datasets")
    root = write_tables(tmp_path / "set", {file: i for i, file in enumerate(LAYOUTS[layout])})
    builder = datasets.load_dataset_builder(str(root), cache_dir=str(tmp_path / "cache"))
    wanted = {
        str(name): sorted(LAYOUTS[layout].index(str(Path(file).relative_to(root))) for file in files)
        for name, files in builder.config.data_files.items()
    }
    if split not in wanted:
        with pytest.raises(UserError, match=f"split: .* has no Parquet files of '{split}', it has "):
            open_source(str(root), Selection(split))
        return
    source = open_source(str(root), Selection(split))
    assert sorted({*source.labels.tolist()}) == wanted[split]
    assert len(source) == 2 * len(wanted[split])
    dropped = len(LAYOUTS[layout]) - len(wanted[split])
    assert ("left out: " in told(source)) == bool(dropped)
    if split == "train":
        assert labels_by_name(open_source(str(root))) == labels_by_name(source), "the usual split"


def test_capitals_name_the_same_splits(tmp_path):
    """datasets reads all of these as training data."""
    root = write_tables(tmp_path, {"Train-0.parquet": 0, "TEST-0.PARQUET": 1, "val-0.parquet": 2})
    for split, label in (("train", 0), ("test", 1), ("validation", 2)):
        assert open_source(str(root), Selection(split)).labels.tolist() == [label] * 2


def test_subsets_are_asked_for(tmp_path):
    files = {f"{subset}/{split}-00000-of-00001.parquet": i for i, (subset, split) in enumerate(
        [("cropped", "train"), ("full size", "train"), ("cropped", "test"), ("full size", "test")]
    )}  # fmt: skip
    root = write_tables(tmp_path, files)
    with pytest.raises(UserError, match="several subsets, cropped, full size: which one"):
        open_source(str(root))
    assert open_source(str(root), Selection(subset="full size")).labels.tolist() == [1, 1]
    assert open_source(str(root), Selection("test", subset="cropped")).labels.tolist() == [2, 2]
    assert open_source(str(root), Selection(subset="*")).labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(UserError, match="has no subset 'x', it has cropped, full size"):
        open_source(str(root), Selection(subset="x"))


def test_a_readme_says_what_is_what(tmp_path):
    root = write_tables(tmp_path, {"a.parquet": 0, "b.parquet": 1, "c.parquet": 2})
    one = "- config_name: one\n  data_files:\n  - {split: train, path: b.parquet}\n  - {split: test, path: a.parquet}\n"
    two = "- config_name: two\n  data_files: c.parquet\n"
    (root / "README.md").write_text(f"---\nconfigs:\n{one}---\n")
    source = open_source(str(root))
    assert source.labels.tolist() == [1, 1]
    assert "1 (c.parquet) Parquet files of no split" in told(source)
    (root / "README.md").write_text(f"---\nconfigs:\n{one}{two}---\n")
    with pytest.raises(UserError, match="several subsets, one, two: which one"):
        open_source(str(root))
    assert open_source(str(root), Selection(subset="two")).labels.tolist() == [2, 2]
    for elsewhere in ("https://x.org/a.parquet", "../a.parquet", "/etc/a.parquet"):
        (root / "README.md").write_text(f"---\nconfigs:\n- config_name: x\n  data_files: {elsewhere}\n---\n")
        with pytest.raises(UserError, match=r"its README\.md names data elsewhere"):
            open_source(str(root))


def test_hidden_tables_are_not_read(tmp_path):
    hidden = [".cache/train-00000-of-00001.parquet", "data/.train-00001-of-00002.parquet"]
    root = write_tables(tmp_path, {"data/train-00000-of-00001.parquet": 0, **dict.fromkeys(hidden, 1)})
    source = open_source(str(root))
    assert source.labels.tolist() == [0, 0]
    assert "left out: 2" in told(source) and "hidden" in told(source)


def test_tables_agree_on_the_names_of_classes(tmp_path):
    files = {"train-00000-of-00002.parquet": 0, "train-00001-of-00002.parquet": 0}
    one, other = files
    root = write_tables(tmp_path, files, {one: ["cat", "dog"], other: ["dog", "cat"]})
    with pytest.raises(UserError, match=f"same names of classes .* found cat, dog in {one} and dog, cat in {other}"):
        open_source(str(root))
    write_tables(tmp_path, files, {one: ["cat", "dog"], other: ["cat", "dog"]})
    source = open_source(str(root))
    assert source.classes == ("cat", "dog")
    assert "classes without an image: 1 (dog) of 2" in told(source)


def test_pictures_and_tables_in_one_folder(tmp_path):
    root = put(write_tables(tmp_path / "hub", {"data/train-00000-of-00001.parquet": 0}), "assets/teaser.png")
    source = open_source(str(root))
    assert labels_by_name(source) == {"train-00000-of-00001.parquet[0]": 0, "train-00000-of-00001.parquet[1]": 0}
    assert "left out: 1 (assets/teaser.png) images beside tables" in told(source)
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    root = put(tmp_path / "pictures", "a/0.png", "b/1.png")
    parquet.write_table(pa.table({"caption": ["x"]}), root / "captions.parquet")
    source = open_source(str(root))
    assert labels_by_name(source) == {"a/0.png": 0, "b/1.png": 1}
    assert "left out: 1 files that are no images (1 .parquet)" in told(source)


# Folders: splits


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val"), ("training", "validation"), ("Train", "Test"), ("train", "dev", "testing"), ("train", "eval"),
        ("train2017", "val2017"), ("ILSVRC2012_img_train", "ILSVRC2012_img_val"), ("train", "test", "unlabelled"),
        ("train", "extra"), ("train",),
    ],
)  # fmt: skip
@pytest.mark.parametrize("around", ["", "ILSVRC/Data/"])
def test_folders_of_splits_are_no_classes(tmp_path, names, around):
    files = [f"{around}{name}/{animal}/{i}.png" for name in names for animal in ("cat", "dog") for i in range(2)]
    root = put(tmp_path, *files)
    with pytest.raises(UserError, match=f"split: .* has folders of splits .*{names[0]}.* say split=NAME"):
        open_source(str(root))
    source = open_source(str(root), Selection("train"))
    assert source.classes == ("cat", "dog")
    assert labels_by_name(source) == {f: int("dog" in f) for f in files if f.startswith(f"{around}{names[0]}/")}
    others = len(files) - 4
    assert (f"left out: {others} images of other folders than {names[0]}" in told(source)) == bool(others)


def test_splits_within_classes(tmp_path):
    root = put(tmp_path, *(f"{c}/{s}/{i}.png" for c in ("cat", "dog") for s in ("train", "test") for i in range(2)))
    with pytest.raises(UserError, match="folders of splits"):
        open_source(str(root))
    assert labels_by_name(open_source(str(root), Selection("test"))) == {
        "cat/test/0.png": 0, "cat/test/1.png": 0, "dog/test/0.png": 1, "dog/test/1.png": 1,
    }  # fmt: skip


def test_a_class_may_be_called_train(tmp_path):
    assert open_source(str(put(tmp_path / "a", "bus/0.png", "train/1.png"))).classes == ("bus", "train")
    assert open_source(str(put(tmp_path / "b", "bullet_train/0.png", "car/1.png", "test tube/2.png"))).classes == (
        "bullet_train", "car", "test tube",
    )  # fmt: skip


def test_a_split_that_is_not_there(tmp_path):
    root = put(tmp_path / "val", "a/0.png", "b/1.png")
    with pytest.raises(UserError, match="has no folders of splits, such as train and val; leave out split=train"):
        open_source(str(root), Selection("train"))
    assert len(open_source(str(root), Selection("validation"))) == 2, "the folder itself is called so"
    with pytest.raises(UserError, match=r"split: wanted one of the folders in .*, train, val; found split=test"):
        open_source(str(put(tmp_path / "both", "train/a/0.png", "val/a/0.png")), Selection("test"))
    np.savez(tmp_path / "x.npz", pictures(2))
    with pytest.raises(UserError, match="split: wanted none for a single file"):
        open_source(str(tmp_path / "x.npz"), Selection("test"))


# Folders: classes


def test_what_systems_leave_behind_is_no_class(tmp_path):
    root = put(tmp_path, "a/0.png", "b/1.png", "b/@eaDir/1.png/thumb.jpg", ".ipynb_checkpoints/0.png", "a/._0.png")
    for name in [*SYSTEM, "__MACOSX", "empty", ".Trash-1000", "logs/deep"]:
        (root / name).mkdir(parents=True)
    (root / "logs" / "x.txt").write_text("x")
    source = open_source(str(root))
    assert source.classes == ("a", "b")
    assert labels_by_name(source) == {"a/0.png": 0, "b/1.png": 1}
    assert "no classes: 2 (empty, logs), folders without an image" in told(source)
    assert "left out: 3 (" in told(source) and "hidden" in told(source)
    assert "b/@eaDir/1.png/thumb.jpg" in told(source) or f"left out: {len(SYSTEM) + 2} (" in told(source)
    assert "1 files that are no images (1 .txt)" in told(source)


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
        source = open_source(str(put(tmp_path, *(f"{name}/0.png" for name in names))))
        assert labels_by_name(source) == {f"{name}/0.png": wanted.index(name) for name in names}
    elif kind == "table":
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pa.table({"image": [b"x"] * len(names), "label": names}), tmp_path / "x.parquet")
        source = open_source(str(tmp_path / "x.parquet"))
        assert source.labels.tolist() == [wanted.index(name) for name in names]
    else:
        root = put(tmp_path, *(f"{i:02d}.png" for i in range(len(names))))
        rows = [json.dumps({"file_name": f"{i:02d}.png", "label": name}) for i, name in enumerate(names)]
        (root / "metadata.jsonl").write_text("\n".join(rows))
        source = open_source(str(root))
        assert source.labels.tolist() == [wanted.index(name) for name in names]
    assert list(source.classes) == wanted
    assert re.search(note, told(source)) if note else "classes" not in told(source)


def test_one_number_is_not_two_classes(tmp_path):
    with pytest.raises(UserError, match="wanted classes of different numbers, found 01 and 1; rename"):
        open_source(str(put(tmp_path, "01/0.png", "1/0.png", "2/0.png")))


def test_one_folder_around_the_classes_is_told(tmp_path):
    source = open_source(str(put(tmp_path, "photos/cat/0.png", "photos/dog/1.png")))
    assert source.classes == ("photos",)
    assert "all images are of the class photos; if the folders in it are the classes" in told(source)


def test_pictures_that_are_not_read_and_links_are_told(tmp_path):
    root = put(tmp_path / "set", "a/0.PNG", "a/1.jfif", "a/2.Jpe", "b/3.pgm", "b/4.tiff")
    (root / "c").mkdir()
    for link in ("c/again", "z"):
        (root / link).symlink_to(root / "a")
    (root / "c" / "up").symlink_to(tmp_path)
    put(tmp_path / "elsewhere", "5.png")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "elsewhere")
    (root / "d").symlink_to(tmp_path / "elsewhere")
    source = open_source(str(root), Selection(follow_links=True))
    assert labels_by_name(source) == {
        "a/0.PNG": 0, "a/1.jfif": 0, "a/2.Jpe": 0, "b/3.pgm": 1, "d/5.png": 2,
    }  # fmt: skip
    assert "left out: 1 .tiff, a kind of picture that is not read; save them as png" in told(source)
    assert "left out: 4 (c/again, c/up, d/circle, ...) links to folders that are here anyway" in told(source)


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    root, real = put(tmp_path, "a/0.png", "b/1.png"), os.scandir

    def refuses(place):
        if str(place).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(place))
        return real(place)

    monkeypatch.setattr(os, "scandir", refuses)
    with pytest.raises(UserError, match=r"images: .*/b cannot be read \(Permission denied\)"):
        open_source(str(root))


# Label files

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
    write_labels(put(tmp_path, *LABELS), kind, LABELS)
    source = open_source(str(tmp_path))
    assert labels_by_name(source) == LABELS
    assert source.classes == tuple(map(str, range(10)))
    encoded = open_source(str(put(tmp_path / "other", *LABELS)))
    assert encoded.classes == ("00000", "00001"), "without such a file they are"


@pytest.mark.parametrize("kind", KINDS)
def test_label_files_and_images_that_do_not_match(tmp_path, kind):
    root = put(tmp_path, *LABELS, "00002/more.png")
    write_labels(root, kind, {**LABELS, "00003/gone.png": 1, "../outside.png": 2})
    source = open_source(str(root))
    assert labels_by_name(source) == LABELS
    assert "left out: 1 (00002/more.png) images that" in told(source)
    assert "missing: 2 (" in told(source) and "00003/gone.png" in told(source)
    write_labels(root, kind, {"nothing.png": 1})
    with pytest.raises(UserError, match=r"names none of the images in the folder, but nothing\.png"):
        open_source(str(root))


def test_label_files_of_folders_of_splits(tmp_path):
    root = put(tmp_path, "train/0.png", "train/1.png", "test/0.png")
    write_labels(root / "train", "csv", {"0.png": 1, "1.png": 0})
    write_labels(root / "test", "csv", {"0.png": 7})
    assert labels_by_name(open_source(str(root), Selection("train"))) == {"train/0.png": 1, "train/1.png": 0}
    assert labels_by_name(open_source(str(root), Selection("test"))) == {"test/0.png": 7}


def test_a_label_file_that_says_there_are_none(tmp_path):
    root = put(tmp_path, *LABELS)
    (root / "dataset.json").write_text('{"labels": null}')
    source = open_source(str(root))
    assert source.classes == ("all",) and source.labels.tolist() == [0] * 5
    assert "dataset.json: there are no labels" in told(source)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("dataset.json", "{", "dataset.json: wanted labels of images, found a broken file"),
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
    (put(tmp_path, *LABELS) / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        open_source(str(tmp_path))
    assert "\n" not in str(error.value)


def test_files_that_are_called_so_and_hold_no_labels(tmp_path):
    root = put(tmp_path, "a/0.png", "b/1.png")
    (root / "dataset.json").write_text('{"name": "mine"}')
    (root / "metadata.csv").write_text("file_name,caption\na/0.png,x\n")
    source = open_source(str(root))
    assert source.classes == ("a", "b")
    assert "dataset.json has no labels and is not used" in told(source)
    assert "metadata.csv has no column of labels" in told(source)
    with pytest.raises(UserError, match=r"label_column: .* has no column kind, it has file_name, caption"):
        open_source(str(root), Selection(label_column="kind"))
    assert open_source(str(root), Selection(label_column="caption")).classes == ("x",)


# What is said of images that are used


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("interlaced", [False, True])
def test_deep_colours_are_rounded(channels, interlaced):
    """To the nearest of 8 bits: value / 257, as the PNG specification scales."""
    values = np.random.default_rng(0).integers(0, 2**16, (16, 16, channels), dtype=np.uint16)
    found, remarks = pixels(deep_png(values, interlaced), 16)
    colours = values[..., :3] if channels > 2 else values[..., [0, 0, 0]]
    np.testing.assert_array_equal(found, np.rint(colours / 257).astype(np.uint8))
    assert remarks == ("of 16 bits a channel, rounded to 8",)


def test_remarks_are_counted_over_shards_and_kept(tmp_path, caplog):
    root = put(tmp_path / "set", *(f"a/{i}.png" for i in range(3)))
    values = np.random.default_rng(0).integers(0, 2**16, (8, 8, 3), dtype=np.uint16)
    for i in range(3, 6):
        (root / "a" / f"{i}.png").write_bytes(deep_png(values))
    Image.fromarray(pictures(1)[0]).save(root / "a" / "6.png", format="jpeg")
    Image.fromarray(pictures(1)[0]).save(root / "a" / "7.png", format="webp")
    Image.fromarray(pictures(1)[0]).save(root / "a" / "8.png", format="webp", lossless=True)
    (root / "b").mkdir()
    (root / "b" / "broken.png").write_text("x")
    out = encode(root, tmp_path / "l", shard_size=4)
    wanted = [
        "2 JPEG or lossy WebP by their contents, not by their names (a/6.png, ...)",
        "3 of 16 bits a channel, rounded to 8 (a/3.png, ...)",
        "classes of which no image could be read: 1 (b)",
    ]
    assert read_index(out).about["notes"] == wanted
    assert all(note in caplog.text for note in wanted)
    encode(root, out, shard_size=4)
    assert read_index(out).about["notes"] == wanted, "the same command again verifies the shards"
