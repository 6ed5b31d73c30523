"""Folders of images and of shards as sets to be compared."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from encoded import QUICK as ENCODED
from evaluating import pictures, refused, run
from PIL import Image
from png16 import deep_png
from tiny_text_encoders import tiny_clip

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.data.encode_config import EncodeConfig
from dit_shd.data.encoding import encode_to_shards
from dit_shd.data.image_folders import FolderImages, ShardImages
from dit_shd.data.open_images import open_images
from dit_shd.data.preprocessing import SMALL, centre_crop
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


def save_grays(folder: Path, names: list[str], channels: int = 1, **options) -> np.ndarray:
    """Different gray pictures, in the order of the names; [n, h, w, 1]."""
    images = pictures(len(names), seed=3)
    for name, image in zip(names, images):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.repeat(channels, 2).squeeze()).save(folder / name, **options)
    return images


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


def write_shards(folder: Path, images: np.ndarray) -> list[Path]:
    folder.mkdir()
    (folder / "settings.json").write_text('{"seed": 4, "rounding": "floor"}')
    files = []
    for start in range(0, len(images), 16):
        files.append(folder / f"{start:09d}.npz")
        np.savez(
            files[-1], arr_0=images[start : start + 16], arr_1=np.arange(start, start + 16)[: len(images) - start] % 10
        )
    return files


def test_shards_of_a_sampling_are_the_samples(files):
    folder, images = files["folder"] / "set.npz.parts", pictures(40, seed=1)
    write_shards(folder, images)
    found = open_images(str(folder), "samples")
    assert [len(batch) for batch in found.batches(10)] == [10, 10, 10, 10]
    np.testing.assert_array_equal(np.concatenate(list(found.batches(7))), images)
    from_shards = run(files, samples=str(folder), out=str(files["folder"] / "shards.json"))
    assert from_shards["figures"] == pytest.approx(run(files)["figures"], rel=1e-6)
    assert from_shards["samples"]["sidecar"] == {"seed": 4, "rounding": "floor"}
    assert from_shards["samples"]["labels"]["classes"] == 10


def test_the_settings_beside_a_folder_of_samples_are_the_sampler_s(files):
    folder = files["folder"] / "pngs"
    folder.mkdir()
    for i, image in enumerate(pictures(40, seed=1)):
        Image.fromarray(image[..., 0]).save(folder / f"{i:05d}_{i % 10}.png")
    beside, settings = files["folder"] / "pngs.json", {"seed": 4, "rounding": "floor", "model_sha256": "a"}
    beside.write_text(json.dumps({"images": [], "annotations": []}))
    assert open_images(str(folder), "samples").sidecar is None
    beside.write_text(json.dumps(settings))
    record = run(files, samples=f"{folder}/")
    assert record["samples"]["sidecar"] == settings
    assert not any("not recorded" in note for note in record["notes"])


def test_a_folder_of_samples_has_the_prompts_that_its_files_are_named_by(tmp_path):
    """The CLIP score was left out of them."""
    folder = tmp_path / "pngs"
    folder.mkdir()
    for i, image in enumerate(pictures(5, seed=1)):
        Image.fromarray(image[..., 0]).save(folder / f"{i:05d}_{i % 2}.png")
    settings = {"prompts": ["a nine", "a six"], "model_sha256": "a", "count": 5}
    (tmp_path / "pngs.json").write_text(json.dumps(settings))
    samples = open_images(str(folder), "samples")
    assert samples.prompts == ["a nine", "a six", "a nine", "a six", "a nine"] and samples.labels is None
    (folder / "00004_0.png").rename(folder / "x.png")
    assert open_images(str(folder), "samples").prompts is None


def test_a_sampling_that_goes_on_is_said_and_one_that_has_ended_is_named(files):
    folder, images = files["folder"] / "set.npz.parts", pictures(40, seed=1)
    shards = write_shards(folder, images)
    (folder / "settings.json").write_text(json.dumps({"count": 100}))
    found = ShardImages(folder, "x")
    assert found.notes == ["40 of 100 images, those that are drawn so far"]
    for file in shards:
        file.unlink()
    with pytest.raises(UserError, match=r"is no longer there; the sampling has ended and merged it: name its npz$"):
        next(found.batches(4))


def test_half_written_and_missing_shards_are_refused(files):
    folder = files["folder"] / "set.npz.parts"
    last = write_shards(folder, pictures(40, seed=1))[-1]
    last.write_bytes(last.read_bytes()[:1000])
    assert "half-written" in refused(files, samples=str(folder))
    for file in folder.glob("*.npz"):
        file.unlink()
    assert "no shard is finished yet" in refused(files, samples=str(folder))


def test_jpeg_samples_are_noted(files):
    folder = files["folder"] / "jpegs"
    folder.mkdir()
    for i, image in enumerate(pictures(5, seed=1)):
        Image.fromarray(image[..., 0]).save(folder / f"{i}.jpg")
    assert any("JPEG" in reason for reason in run(files, samples=str(folder))["adm_comparable"]["why_not"])


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
