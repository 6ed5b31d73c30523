"""Folders of images as sets to be compared."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from encoded import QUICK as ENCODED
from evaluating import pictures, refused, run, save_grays
from PIL import Image
from png16 import deep_png

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.data.encode_config import EncodeConfig
from dit_shd.data.encoding import encode_to_shards
from dit_shd.data.image_folders import FolderImages
from dit_shd.data.open_images import open_images
from dit_shd.data.sources.base import Selection
from dit_shd.data.sources.decoding import CLEAR
from dit_shd.data.sources.detect import open_source
from dit_shd.evaluation.features.digits import DigitsFeatures
from dit_shd.evaluation.reference_statistics import StatisticsConfig, write_reference_statistics


def test_a_folder_is_read_in_the_order_of_its_paths_and_its_hash_covers_names_and_contents(tmp_path):
    a, b = pictures(2, seed=5, shape=(8, 6, 3))
    for name, image in (("1/z.png", a), ("2/a.png", b)):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    found = FolderImages(tmp_path, "x")
    assert found.shape == (2, 8, 6, 3)
    np.testing.assert_array_equal(np.concatenate(list(found.batches(1))), np.stack([a, b]))
    first = found.sha256()
    (tmp_path / "2/a.png").rename(tmp_path / "2/b.png")
    assert FolderImages(tmp_path, "x").sha256() != first


SUFFIXES = ("png", "PNG", "bmp", "webp", "jfif", "ppm", "tiff", "jp2")


def test_hidden_files_and_those_of_systems_are_no_samples(files):
    """What editors, notebooks, waste bins and macOS leave behind is left out, and the results file says so."""
    folder = files["folder"] / "set"
    images = save_grays(folder, [f"{i}.png" for i in range(9)])
    save_grays(folder, [".ipynb_checkpoints/0-checkpoint.png", ".Trash-1000/files/a.png", "@eaDir/0.png/thumb.png"])
    (folder / "._0.png").write_bytes(b"\0\5\26\7" + bytes(60))
    (folder / "notes.txt").write_text("x")
    found = FolderImages(folder, "x")
    np.testing.assert_array_equal(next(found.batches(99)), images)
    record = run(files, samples=str(folder), reference=str(folder))
    assert record["samples"]["n"] == record["reference"]["n"] == 9
    for which in ("samples", "reference"):
        assert f"{which}: left out: 1 (@eaDir/0.png/thumb.png) in folders of the system" in record["notes"]
        assert f"{which}: left out: 1 files that are no images (1 .txt)" in record["notes"]
        (hidden,) = (
            note for note in record["notes"] if note.startswith(f"{which}: left out: 3 (") and "hidden" in note
        )
        assert ".ipynb_checkpoints/0-checkpoint.png" in hidden


def test_both_commands_take_the_same_files(files):
    """Of all kinds of pictures and of links; what is left out is counted and said by both in the same words."""
    folder = files["folder"] / "set"
    save_grays(folder, [f"a/{i}.{suffix}" for i, suffix in enumerate(SUFFIXES)], channels=3)
    (folder / "b").symlink_to(files["folder"] / "elsewhere")
    save_grays(files["folder"] / "elsewhere", ["0.png", "1.Png"], channels=3)
    (files["folder"] / "elsewhere" / "up").symlink_to(files["folder"] / "elsewhere")
    (folder / "a" / "linked.png").symlink_to(files["folder"] / "elsewhere" / "0.png")
    evaluated, encoded = FolderImages(folder, "x"), open_source(str(folder), Selection(follow_links=True))
    assert evaluated.shape[0] == len(encoded) == len(SUFFIXES) - 2 + 3
    left_out = [note for note in encoded.notes if note.startswith("left out")]
    assert left_out == [note for note in evaluated.notes if note.startswith("left out")]
    assert any("1 .tiff, 1 .jp2, a kind of picture that is not read" in note for note in left_out)


def test_broken_links_are_left_out_and_told(files):
    folder = files["folder"] / "set"
    save_grays(folder, ["0.png", "1.png"])
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    found = FolderImages(folder, "x")
    assert found.shape[0] == 2
    assert found.notes == ["left out: 2 (circle.png, gone.png), broken links or no regular files"]


def test_splits_that_are_taken_together_are_told(files):
    save_grays(files["folder"] / "set", ["train/0.png", "val/1.png"])
    (note,) = FolderImages(files["folder"] / "set", "x").notes
    assert note == "the images are of several splits (train, val), all are taken"


def test_names_that_are_no_utf8(files):
    folder = files["folder"] / "set"
    save_grays(folder, [f"{i}.png" for i in range(9)] + [os.fsdecode(b"\xfe.png"), "new\nline.png"])
    (folder / os.fsdecode(b"\xfd.txt")).write_text("x")
    record = run(files, samples=str(folder), out=str(files["folder"] / "r.json"))
    assert record["samples"]["n"] == 11
    assert (files["folder"] / "r.html").exists()
    (folder / os.fsdecode(b"\xfd.png")).write_text("x")
    assert "\\udcfd.png: wanted an image, found a broken file" in refused(files, samples=str(folder))
    assert "wanted text in UTF-8" in refused(files, samples=str(folder / os.fsdecode(b"\xff")))


def test_transparency_that_is_dropped_is_told(tmp_path):
    (image,) = pictures(1, seed=5, shape=(8, 8, 3))
    Image.fromarray(image).save(tmp_path / "0.png")
    Image.fromarray(np.dstack([image, image[..., 0]])).save(tmp_path / "1.png")
    found = FolderImages(tmp_path, "x", crop=(8, 8, 3))
    assert found.notes == [f"of 2 images 1 (1.png) are {CLEAR}"]
    np.testing.assert_array_equal(found.take(np.arange(2)), np.stack([image, image]))


def test_what_is_lossy_is_told_by_contents(files):
    folder = files["folder"] / "set"
    save_grays(folder, ["0.png", "1.png"], channels=3)
    assert not FolderImages(folder, "x").lossy
    save_grays(folder, ["2.png"], channels=3, format="webp", lossless=True)
    save_grays(folder, ["3.webp"], channels=3, lossless=True)
    assert not FolderImages(folder, "x").lossy
    for kind in ("jpeg", "webp"):
        save_grays(folder, ["4.png"], channels=3, format=kind)
        found = FolderImages(folder, "x")
        assert found.lossy
        assert found.notes == ["of 5 images 1 (4.png) are JPEG or lossy WebP by their contents"]


def test_a_lossy_file_that_is_made_smaller_is_not_called_lossy(tmp_path):
    """ADM's own reference is cut out of JPEG files: what counts is how images at their final size are stored."""
    (image,) = pictures(1, seed=5, shape=(40, 48, 3))
    for i in range(3):
        Image.fromarray(image).save(tmp_path / f"{i}.jpg")
    lossy = {side: FolderImages(tmp_path, "x", crop=(side, side, 3)).lossy for side in (16, 39, 40, 64)}
    assert lossy == {16: False, 39: False, 40: True, 64: True}


@pytest.mark.parametrize("through_statistics", [False, True])
def test_a_lossy_reference_is_told(files, through_statistics):
    reference = files["folder"] / "jpegs"
    save_grays(reference, [f"{i}.jpg" for i in range(40)])
    if through_statistics:
        config = {
            "images": str(reference),
            "out": str(files["folder"] / "s.npz"),
            "features": "digits",
            "device": "cpu",
        }
        reference = write_reference_statistics(make(StatisticsConfig, config))
    record = run(files, reference=str(reference))
    assert "the reference images are JPEG files or lossy WebP" in record["adm_comparable"]["why_not"]
    assert any(note.startswith("reference: of 40 images 40 (") for note in record["notes"])


def test_deep_colours_are_rounded_and_told(tmp_path):
    """To the nearest of 8 bits, value / 257, and not cut off."""
    values = np.random.default_rng(0).integers(0, 2**16, (3, 8, 8, 3), dtype=np.uint16)
    for i, image in enumerate(values):
        (tmp_path / f"{i}.png").write_bytes(deep_png(image))
    found = FolderImages(tmp_path, "x")
    np.testing.assert_array_equal(next(found.batches(9)), np.rint(values / 257).astype(np.uint8))
    assert found.notes == ["of 3 images 3 (0.png, 1.png, 2.png) are of 16 bits a channel, rounded to 8"]


def cut_png(folder: Path) -> None:
    file = folder / "4.png"
    file.write_bytes(file.read_bytes()[:-20])


def save(folder: Path, mode: str, suffix: str = "png") -> None:
    Image.new(mode, (28, 28)).save(folder / f"7.{suffix}")


BAD_FOLDERS = {
    "no images": (lambda f: [p.unlink() for p in f.glob("*.png")], "found none in it"),
    "sizes": (lambda f: Image.new("L", (9, 9)).save(f / "7.png"), "7.png: wanted (y, x, c) = (28, 28, 1) like 0.png"),
    "modes": (lambda f: save(f, "RGB"), "7.png: wanted (y, x, c) = (28, 28, 1) like 0.png, found (28, 28, 3)"),
    "palette": (lambda f: save(f, "P"), "found mode P"),
    "alpha": (lambda f: save(f, "RGBA"), "found mode RGBA"),
    "gray and alpha": (lambda f: save(f, "LA"), "found mode LA"),
    "16 bits": (lambda f: save(f, "I;16"), "found mode I;16"),
    "CMYK": (lambda f: save(f, "CMYK", "jpg"), "found mode CMYK"),
    "truncated": (cut_png, "4.png: wanted an image, found a broken file"),
    "text": (lambda f: (f / "7.png").write_text("hello"), "7.png: wanted an image, found a broken file"),
}


@pytest.mark.parametrize("bad", BAD_FOLDERS)
def test_bad_folders_are_refused_before_the_network_runs(files, bad, monkeypatch):
    monkeypatch.setattr(DigitsFeatures, "extract", lambda *_: pytest.fail("the network ran"))
    folder = files["folder"] / "pngs"
    folder.mkdir()
    for i, image in enumerate(pictures(5, seed=1)):
        Image.fromarray(image[..., 0]).save(folder / f"{i}.png")
    make_bad, message = BAD_FOLDERS[bad]
    make_bad(folder)
    assert message in refused(files, samples=str(folder))


def test_a_truncated_jpeg_is_one_line(files):
    folder = files["folder"] / "jpegs"
    folder.mkdir()
    Image.fromarray(pictures(1, seed=1, shape=(64, 64, 3))[0]).save(folder / "0.jpg")
    data = (folder / "0.jpg").read_bytes()
    (folder / "0.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"0\.jpg: wanted an image, found a broken file"):
        list(FolderImages(folder, "x").batches(4))


@pytest.mark.parametrize("packed", [False, True])
def test_a_reference_leaves_out_broken_files_as_encode_does(files, tmp_path, packed):
    """One that is no image, a PNG and a JPEG that are cut short; of a JPEG that is found only by decoding it."""
    folder, cut = tmp_path / "set", {"1.png": 3, "3.jpg": 2, "6.ppm": 2}
    save_grays(folder, [f"{i}.{end}" for i, end in enumerate(["png", "png", "jpg", "jpg", "png", "png", "ppm"])])
    for name, share in cut.items():
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // share])
    (folder / "7.jpg").write_text("hello")
    place, names = folder, ["1.png", "3.jpg", "6.ppm", "7.jpg"]
    if packed:
        place, names = tmp_path / "set.tar", ["1", "3", "6", "7"]
        with tarfile.open(place, "w") as tar:
            for file in sorted(folder.iterdir()):
                tar.add(file, file.name)
    with pytest.raises(UserError, match="found a broken file"):
        open_images(str(place), "x", (8, 8, 1))
    for crop in (None, (8, 8, 1)):
        images = open_images(str(place), "x", crop, lenient=True)
        assert images.shape == (4, *((28, 28, 1) if crop is None else crop))
        assert images.notes[0].startswith("left out: 4 (") and images.notes[0].endswith(" of 8, broken files")
        assert all(name in images.notes[0] for name in names[:2])
        batches = np.concatenate(list(images.batches(3)))
        np.testing.assert_array_equal(batches, images.take(np.arange(4)))
    out = tmp_path / "latents"
    assert len(encode_to_shards(make(EncodeConfig, {**ENCODED, "images": str(place), "out": str(out)}))) == 4
    record = run(files, reference=str(place), metrics=["frechet"], page=False)
    assert record["reference"]["n"] == 4
    assert f"reference: {images.notes[0]}" in record["notes"]


def test_a_reference_of_broken_files_alone_is_refused(tmp_path):
    (tmp_path / "0.png").write_text("hello")
    with pytest.raises(UserError, match=r"0\.png: wanted an image, found a broken file"):
        open_images(str(tmp_path), "x", lenient=True)
