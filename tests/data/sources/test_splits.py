"""Training, validation and test data in one folder: every layout that others write."""

from pathlib import Path

import numpy as np
import pytest
from encoded import pictures
from image_sources import labels_by_name, notes, pngs, write_tables

from dit_shd.core.errors import UserError
from dit_shd.data.sources.base import Selection
from dit_shd.data.sources.detect import open_source

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
    assert ("left out: " in notes(source)) == bool(dropped)
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
    assert "1 (c.parquet) Parquet files of no split" in notes(source)
    (root / "README.md").write_text(f"---\nconfigs:\n{one}{two}---\n")
    with pytest.raises(UserError, match="several subsets, one, two: which one"):
        open_source(str(root))
    assert open_source(str(root), Selection(subset="two")).labels.tolist() == [2, 2]
    for elsewhere in ("https://x.org/a.parquet", "../a.parquet", "/etc/a.parquet"):
        (root / "README.md").write_text(f"---\nconfigs:\n- config_name: x\n  data_files: {elsewhere}\n---\n")
        with pytest.raises(UserError, match=r"its README\.md names data elsewhere"):
            open_source(str(root))


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
    root = pngs(tmp_path, *files)
    with pytest.raises(UserError, match=f"split: .* has folders of splits .*{names[0]}.* say split=NAME"):
        open_source(str(root))
    source = open_source(str(root), Selection("train"))
    assert source.classes == ("cat", "dog")
    assert labels_by_name(source) == {f: int("dog" in f) for f in files if f.startswith(f"{around}{names[0]}/")}
    others = len(files) - 4
    assert (f"left out: {others} images of other folders than {names[0]}" in notes(source)) == bool(others)


def test_splits_within_classes(tmp_path):
    root = pngs(tmp_path, *(f"{c}/{s}/{i}.png" for c in ("cat", "dog") for s in ("train", "test") for i in range(2)))
    with pytest.raises(UserError, match="folders of splits"):
        open_source(str(root))
    assert labels_by_name(open_source(str(root), Selection("test"))) == {
        "cat/test/0.png": 0, "cat/test/1.png": 0, "dog/test/0.png": 1, "dog/test/1.png": 1,
    }  # fmt: skip


def test_a_class_may_be_called_train(tmp_path):
    assert open_source(str(pngs(tmp_path / "a", "bus/0.png", "train/1.png"))).classes == ("bus", "train")
    assert open_source(str(pngs(tmp_path / "b", "bullet_train/0.png", "car/1.png", "test tube/2.png"))).classes == (
        "bullet_train", "car", "test tube",
    )  # fmt: skip


def test_a_split_that_is_not_there(tmp_path):
    root = pngs(tmp_path / "val", "a/0.png", "b/1.png")
    with pytest.raises(UserError, match="has no folders of splits, such as train and val; leave out split=train"):
        open_source(str(root), Selection("train"))
    assert len(open_source(str(root), Selection("validation"))) == 2, "the folder itself is called so"
    with pytest.raises(UserError, match=r"split: wanted one of the folders in .*, train, val; found split=test"):
        open_source(str(pngs(tmp_path / "both", "train/a/0.png", "val/a/0.png")), Selection("test"))
    np.savez(tmp_path / "x.npz", pictures(2))
    with pytest.raises(UserError, match="split: wanted none for a single file"):
        open_source(str(tmp_path / "x.npz"), Selection("test"))
