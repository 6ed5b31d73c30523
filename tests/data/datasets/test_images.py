"""Images of any size from class folders and Hugging Face datasets."""

import datasets
import numpy as np
import pytest
from PIL import Image

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import Draws
from dit_shd.data.datasets import DATASETS


def build(path, **options):
    return DATASETS.build(Plugin("images", {"path": str(path), **options}), "data")


@pytest.fixture
def folder(tmp_path):
    """Three images of two classes in two splits, of different sizes and formats."""
    r = np.random.default_rng(0)
    for split in ("train", "val"):
        for i, (name, size) in enumerate((("cat/1.png", (9, 12)), ("cat/2.png", (16, 8)), ("dog/1.png", (20, 20)))):
            file = tmp_path / "set" / split / name
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = r.integers(0, 256, (*size, 3), np.uint8)
            Image.fromarray(pixels[..., 0] if i == 1 else pixels).save(file)
    return tmp_path / "set"


def test_class_folders(folder):
    data = build(folder, split="train")
    assert len(data) == 3 and data.class_names == ("cat", "dog") and data.labels().tolist() == [0, 0, 1]
    assert [data.image(i).shape for i in range(3)] == [(9, 12, 3), (16, 8, 3), (20, 20, 3)]
    assert np.array_equal(data.image(2), np.asarray(Image.open(folder / "train" / "dog" / "1.png")))
    assert not np.array_equal(data.image(2), build(folder, split="val").image(2))


@pytest.mark.parametrize("of", ["files", "folders"])
def test_links_are_followed_where_that_is_wanted(folder, tmp_path, of):
    """As a cluster lays out ImageNet: the error names a key that there is."""
    linked = tmp_path / "linked"
    for source in (folder / "train").glob("*" if of == "folders" else "*/*"):
        link = linked / source.relative_to(folder / "train")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(source)
    with pytest.raises(UserError, match="follow_links=true"):
        build(linked).image(0)
    data = build(linked, follow_links=True)
    assert data.class_names == ("cat", "dog") and data.labels().tolist() == [0, 0, 1]
    assert data.image(0).shape == (9, 12, 3)


def test_hugging_face_datasets(folder, tmp_path):
    files = sorted((folder / "train").rglob("*.png"))
    table = {"image": [str(f) for f in files], "label": [0, 0, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    datasets.Dataset.from_dict(table, features=features).save_to_disk(tmp_path / "saved")
    ours, theirs = build(tmp_path / "saved"), build(folder, split="train")
    assert ours.class_names == theirs.class_names and ours.labels().tolist() == theirs.labels().tolist()
    assert all(np.array_equal(ours.image(i), theirs.image(i)) for i in (2, 0, 1))


def test_what_its_source_remarks_is_said_once_and_by_one_process(folder, caplog, monkeypatch):
    """As which images were left out: the images of an evaluation are opened again and again."""
    (folder / "train" / "cat" / "3.tiff").write_bytes(b"x")
    notes = [build(folder, split="train").notes for _ in range(2)]
    assert notes[0] == notes[1] and any("1 .tiff" in note for note in notes[0])
    assert [r.message for r in caplog.records] == [f"data images: '{folder}': {note}" for note in notes[0]]
    caplog.clear()
    monkeypatch.setenv("RANK", "1")
    (folder / "train" / "cat" / "4.tiff").write_bytes(b"x")
    assert any("2 .tiff" in note for note in build(folder, split="train").notes) and not caplog.records


def test_labels_of_all_images_are_not_compared_for_each_image(folder, monkeypatch):
    """A millisecond of each among 1.28 million."""
    data = build(folder, split="train")
    monkeypatch.delattr(data._source, "labels")
    assert [data.image(i).shape for i in range(3)] == [(9, 12, 3), (16, 8, 3), (20, 20, 3)]


def test_an_image_that_is_none_is_replaced_by_the_next_of_its_class_and_said(folder, caplog):
    (folder / "train" / "cat" / "1.png").write_text("no image")
    data = build(folder, split="train")
    for again in (data, data, build(folder, split="train")):  # an evaluation opens its images each time
        assert np.array_equal(again.image(0), again.image(1))
    assert [r.message for r in caplog.records if "1.png" in r.message] == [
        "train/cat/1.png: left out, none of PNG, JPEG, WEBP, BMP, GIF, PPM"
    ]
    (folder / "train" / "cat" / "2.png").write_text("no image")
    with pytest.raises(UserError, match=r"cat/1\.png: cannot be decoded, nor the next ones of its class"):
        data.image(0)


def test_what_can_only_be_read_in_order_or_has_no_one_size_is_refused(folder, shapes, tmp_path):
    with pytest.raises(UserError, match="is read in order only, and training takes any; use name: npz"):
        build(shapes)
    table = {"image": [{"bytes": b"", "path": None}], "label": [0]}
    datasets.Dataset.from_dict(table).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="use datasets' save_to_disk of it"):
        build(tmp_path / "a.parquet", image_column="image", label_column="label")
    data = build(folder, split="train")
    with pytest.raises(UserError, match="of any size and have no latents; encode them first"):
        data.batch(np.array([0]), Draws(0, 0, [0], 1))
    with pytest.raises(UserError, match="may differ in size"):
        data.images()
