"""Images with captions as a reference: what is cropped, and which split is read."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from evaluating import pictures, refused, run, save_grays
from PIL import Image
from tiny_text_encoders import tiny_clip

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.data.image_folders import FolderImages
from dit_shd.data.open_images import open_images
from dit_shd.data.preprocessing import SMALL, centre_crop
from dit_shd.evaluation.reference_statistics import StatisticsConfig, write_reference_statistics

CAPTIONS = ("a nine", "two digits", "a six", "a two", "a thin one", "a three")


def captioned(folder: Path, kind: str, sizes: list[tuple[int, int]]) -> tuple[Path, list[Image.Image]]:
    """A caption set of colour pictures as people have it: files with .txt beside, Parquet, or a WebDataset tar."""
    images = [
        Image.fromarray(pictures(1, seed=i, shape=(y, x, 3))[0]) for i, (y, x) in zip(range(len(CAPTIONS)), sizes)
    ]
    coded = []
    for image in images:
        image.save(stream := io.BytesIO(), "png")
        coded.append(stream.getvalue())
    folder.mkdir()
    if kind == "parquet":
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        cells = [{"bytes": data, "path": None} for data in coded]
        parquet.write_table(pa.table({"image": cells, "text": [*CAPTIONS]}), folder / "train.parquet")
        return folder / "train.parquet", images
    if kind == "folder":
        for i, data in enumerate(coded):
            (folder / f"{i}.png").write_bytes(data)
            (folder / f"{i}.txt").write_text(CAPTIONS[i])
        return folder, images
    with tarfile.open(folder / "0000.tar", "w") as tar:
        for i, data in enumerate(coded):
            for suffix, content in (("png", data), ("txt", CAPTIONS[i].encode())):
                member = tarfile.TarInfo(f"{i:04d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return folder / "0000.tar", images


@pytest.mark.parametrize("kind", ["folder", "parquet", "tar"])
def test_a_caption_set_is_a_reference(kind, files):
    """Of one size its pixels are taken as they are, as of an npz; of any size cut as dit-shd encode cuts them."""
    samples = files["folder"] / "s.npz"
    np.savez(samples, pictures(8, seed=9, shape=(16, 16, 3)), np.arange(8) % 6)
    samples.with_suffix(".json").write_text(json.dumps({"prompts": CAPTIONS}))
    features = {"name": "clip", "weights": str(tiny_clip(files["folder"] / "clip"))}
    keys = {"samples": str(samples), "features": features, "metrics": ["frechet", "clip_score"], "page": False}
    same, images = captioned(files["folder"] / "same", kind, [(16, 16)] * 6)
    np.savez(files["folder"] / "same.npz", np.stack([np.asarray(image) for image in images]))
    expected = run(files, **keys, reference=str(files["folder"] / "same.npz"), out=str(files["folder"] / "a.json"))
    record = run(files, **keys, reference=str(same), out=str(files["folder"] / "b.json"))
    assert record["figures"] == pytest.approx(expected["figures"], rel=1e-6)
    assert record["reference"]["n"] == 6
    whole = run(files, **keys, reference=str(same.parent), out=str(files["folder"] / "c.json"))
    assert whole["figures"] == pytest.approx(expected["figures"], rel=1e-6)

    mixed, images = captioned(
        files["folder"] / "mixed", kind, [(16, 16), (20, 33), (40, 24), (16, 30), (9, 16), (64, 64)]
    )
    message = refused(files, **keys, reference=str(mixed))
    assert "wanted (y, x, c) = (16, 16, 3)" in message and "found (20, 33, 3)" in message and "crop=true" in message
    np.savez(files["folder"] / "cut.npz", np.stack([centre_crop(image, 16) for image in images]))
    expected = run(files, **keys, reference=str(files["folder"] / "cut.npz"), out=str(files["folder"] / "d.json"))
    record = run(files, **keys, reference=str(mixed), crop=True, out=str(files["folder"] / "e.json"))
    assert record["figures"] == pytest.approx(expected["figures"], rel=1e-6)
    config = make(StatisticsConfig, {"images": str(mixed), "size": 16, "out": str(files["folder"] / "f.npz"),
                                     "features": keys["features"], "device": "cpu"})  # fmt: skip
    record = run(files, **keys, reference=str(write_reference_statistics(config)), out=str(files["folder"] / "g.json"))
    assert record["figures"] == pytest.approx(expected["figures"], rel=1e-4)


def test_images_that_a_crop_enlarges_are_told(tmp_path):
    for number, sides in enumerate([(8, 8), (7, 9), (20, 9)]):
        Image.new("RGB", sides[::-1]).save(tmp_path / f"{number}.png")
    assert FolderImages(tmp_path, "x", crop=(8, 8, 3)).notes == [f"of 3 images 1 (1.png) are {SMALL}"]


def test_what_is_cropped_and_what_is_not(files, tmp_path):
    wide, images = captioned(tmp_path / "wide", "tar", [(8, 20)] * 6)
    plain, cut = open_images(str(wide), "x"), open_images(str(wide), "x", (8, 8, 3))
    assert plain.shape == (6, 8, 20, 3) and cut.shape == (6, 8, 8, 3)
    assert plain.sha256() != cut.sha256() != open_images(str(wide), "x", (8, 6, 3)).sha256()
    np.testing.assert_array_equal(plain.take(np.array([4, 1])), [np.asarray(images[i]) for i in (4, 1)])
    np.testing.assert_array_equal(cut.take(np.array([2]))[0], centre_crop(images[2], 8))
    with pytest.raises(UserError, match=r"0000\.tar/0000: wanted a gray image like the samples, found colours"):
        next(open_images(str(wide), "x", (8, 8, 1)).batches(2))
    with pytest.raises(UserError, match=r"x: wanted images of 8 x 8 pixels in .*set\.npz, found 28 x 28; a crop is of"):
        open_images(str(files["samples"]), "x", (8, 8, 3))
    save_grays(tmp_path / "gray", ["0.png"])
    assert next(open_images(str(tmp_path / "gray"), "x", (8, 8, 1)).batches(1)).shape == (1, 8, 8, 1)
    data = bytearray(wide.read_bytes())
    data[600] ^= 0xFF
    wide.write_bytes(data)
    with pytest.raises(UserError, match=r"0000\.tar/0000: wanted an image, found a broken file"):
        open_images(str(wide), "x")


def test_of_several_splits_one_is_to_be_named_by_its_folder(tmp_path):
    """Where a set is only named there is no split=, which `dit-shd encode` has."""
    for name in ("train-0", "val-0"):
        tar, _ = captioned(tmp_path / name, "tar", [(8, 8)] * 2)
        (tmp_path / "tars").mkdir(exist_ok=True)
        tar.rename(tmp_path / "tars" / f"{name}.tar")
    with pytest.raises(UserError, match=r"^images: .* \(train, validation\); name a file of one, or a folder with one"):
        open_images(str(tmp_path / "tars"), "images")
    assert open_images(str(tmp_path / "tars" / "val-0.tar"), "images").shape[0] == 2


def test_which_split_of_a_saved_dataset_is_read_is_said(tmp_path):
    datasets = pytest.importorskip("datasets")
    _, (image,) = captioned(tmp_path / "one", "folder", [(8, 8)])
    cells, features = {"image": [image]}, datasets.Features({"image": datasets.Image()})
    of_split = {name: datasets.Dataset.from_dict(cells, features) for name in ("train", "test")}
    datasets.DatasetDict(of_split).save_to_disk(place := tmp_path / "saved")
    assert open_images(str(place), "x").notes == [f"split train is read; left out: test (as {place}/test)"]
    assert not open_images(f"{place}/test", "x").notes
