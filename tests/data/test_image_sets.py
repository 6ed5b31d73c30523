"""Sets of images: read in order, batch by batch; every bad file is one clear line that names it."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from evaluating import Trap, pictures, refused, run
from PIL import Image

from dit_shd.core.errors import UserError
from dit_shd.data.image_folders import FolderImages
from dit_shd.data.image_sets import ArrayImages, NpzImages
from dit_shd.data.open_images import open_images
from dit_shd.evaluation.features.digits import Digits

# Bad samples


def cut_member(path: Path) -> None:
    """A zip that is whole around an array that is not."""
    np.save(path.with_suffix(".npy"), pictures(40, seed=1))
    data = path.with_suffix(".npy").read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", data[:-1000])


def flip_byte(path: Path) -> None:
    """One pixel differs from the checksum."""
    np.savez(path, pictures(40, seed=1))
    data = bytearray(path.read_bytes())
    data[5000] ^= 0xFF
    path.write_bytes(data)


def cut_file(path: Path) -> None:
    np.savez(path, pictures(40, seed=1))
    path.write_bytes(path.read_bytes()[:20_000])


def two_arrays(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for n in (40, 9):
            with archive.open("arr_0.npy", "w") as stream:
                np.save(stream, pictures(n, seed=1))


BAD_FILES = {
    "missing": (lambda p: p.unlink(), "found nothing at"),
    "text": (lambda p: p.write_bytes(b"hello"), "found a file of another kind, no zip archive"),
    "one array": (lambda p: np.save(p.open("wb"), pictures(9, 0)), "write numpy.savez(path, images)"),
    "two arr_0": (two_arrays, "wanted one arr_0, found 2"),
    "empty": (lambda p: p.write_bytes(b""), "found an empty file"),
    "cut file": (cut_file, "found a broken one (its end is missing)"),
    "cut array": (cut_member, "cut short"),
    "flipped byte": (flip_byte, "found a broken one"),
    "no arr_0": (lambda p: np.savez(p, images=pictures(9, 0)), "wanted images in arr_0, found images.npy"),
    "float": (lambda p: np.savez(p, pictures(9, 0) / 255), "found float64"),
    "signed": (lambda p: np.savez(p, pictures(9, 0).astype(np.int64)), "found int64"),
    "three axes": (lambda p: np.savez(p, pictures(9, 0)[..., 0]), "wanted images uint8 [n, h, w, c]"),
    "channels first": (
        lambda p: np.savez(p, pictures(9, 0, (28, 28, 3)).transpose(0, 3, 1, 2)),
        "channels last",
    ),
    "no images": (lambda p: np.savez(p, pictures(9, 0)[:0]), "wanted at least 1 image"),
    "objects": (lambda p: np.savez(p, np.array([Trap(p.parent / "mark")])), "found object"),
    "object labels": (lambda p: np.savez(p, pictures(9, 0), np.array([Trap(p.parent / "mark")])), "never unpickled"),
    "fortran": (lambda p: np.savez(p, np.asfortranarray(pictures(9, 0))), "Fortran order"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("which", ["samples", "reference"])
@pytest.mark.parametrize("bad", BAD_FILES)
def test_bad_files_are_one_line_that_names_them(files, bad, which):
    make_bad, message = BAD_FILES[bad]
    make_bad(files[which])
    text = refused(files)
    assert message in text
    assert str(files[which]) in text
    assert not (files[which].parent / "mark").exists(), "code from the file ran"
    assert not (files["samples"].parent / "results.json").exists()


CLASSES = np.array([3, 0, 2, 3, 1, 0])


@pytest.mark.parametrize(
    "given",
    [
        CLASSES,
        CLASSES.astype(np.uint8),
        CLASSES.astype(np.float32),
        CLASSES[:, None],
        CLASSES[:, None].astype(np.float64),
        np.asfortranarray(CLASSES),
        np.eye(4, dtype=np.int64)[CLASSES],
        np.eye(4, dtype=bool)[CLASSES],
        np.eye(4, dtype=np.float16)[CLASSES],
        np.array(["ant", "bee", "cow", "dog"])[CLASSES],
        np.array([b"ant", b"bee", b"cow", b"dog"])[CLASSES],
    ],
    ids=lambda given: f"{given.dtype}{list(given.shape)}",
)
def test_labels_are_read_however_they_are_written(tmp_path, given):
    np.savez(tmp_path / "s.npz", pictures(6, 0), given)
    found = NpzImages(tmp_path / "s.npz", "s").labels
    assert found is not None
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, CLASSES)


@pytest.mark.parametrize(
    "given",
    [
        CLASSES[:5],
        np.int64(3),
        CLASSES + 0.5,
        np.where(CLASSES == 2, np.nan, CLASSES),
        np.eye(4)[CLASSES] * 0.7 + 0.1,
        np.zeros((6, 4)),
        np.zeros((6, 0)),
        np.zeros((6, 2**15)),
        CLASSES.astype(complex),
    ],
    ids=lambda given: f"{given.dtype}{list(given.shape)}",
)
def test_what_is_no_label_for_each_image_is_left_alone(tmp_path, given):
    np.savez(tmp_path / "s.npz", pictures(6, 0), given)
    assert NpzImages(tmp_path / "s.npz", "s").labels is None


def test_a_file_with_something_before_the_archive_is_read(tmp_path):
    """zip archives may have it; numpy.load calls it a pickle."""
    np.savez(tmp_path / "s.npz", pictures(6, 0), CLASSES)
    (tmp_path / "s.npz").write_bytes(b"junk" * 50 + (tmp_path / "s.npz").read_bytes())
    found = NpzImages(tmp_path / "s.npz", "s")
    np.testing.assert_array_equal(next(found.batches(6)), pictures(6, 0))
    np.testing.assert_array_equal(found.labels, CLASSES)


@pytest.mark.parametrize("shape", [(32, 32, 1), (28, 28, 3)])
def test_samples_and_reference_of_another_shape_are_refused(files, shape):
    np.savez(files["reference"], pictures(50, 2, shape))
    assert "wanted reference images like the samples" in refused(files)
    np.savez(files["samples"], pictures(40, 1, shape))
    assert "feature network digits wants images of 28 x 28" in refused(files)


# Folders


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


def cut_png(folder: Path) -> None:
    file = folder / "4.png"
    file.write_bytes(file.read_bytes()[:-20])


def save(folder: Path, mode: str, suffix: str = "png") -> None:
    Image.new(mode, (28, 28)).save(folder / f"7.{suffix}")


BAD_FOLDERS = {
    "no images": (lambda f: [p.unlink() for p in f.glob("*.png")], "found none in it"),
    "sizes": (lambda f: Image.new("L", (9, 9)).save(f / "7.png"), "7.png: wanted (h, w, c) = (28, 28, 1) like 0.png"),
    "modes": (lambda f: save(f, "RGB"), "7.png: wanted (h, w, c) = (28, 28, 1) like 0.png, found (28, 28, 3)"),
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
    monkeypatch.setattr(Digits, "extract", lambda *_: pytest.fail("the network ran"))
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


@pytest.mark.parametrize("size", [1, 7, 100])
def test_images_are_taken_by_number_from_any_set(files, size):
    folder, images = files["folder"] / "pngs", pictures(40, seed=1)
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(folder / f"{i:03}.png")
    wanted = np.array([3, 39, 0, 17])
    for found in (NpzImages(files["samples"], "x"), FolderImages(folder, "x"), ArrayImages(images, "x")):
        np.testing.assert_array_equal(found.take(wanted, size), images[wanted])


# Shards of a sampling


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


def test_an_npz_is_read_batch_by_batch_in_order(files):
    found = NpzImages(files["samples"], "x")
    batches = list(found.batches(16))
    assert [len(batch) for batch in batches] == [16, 16, 8]
    np.testing.assert_array_equal(np.concatenate(batches), pictures(40, seed=1))
    assert found.labels is not None
    assert found.labels.tolist() == [i % 10 for i in range(40)]
