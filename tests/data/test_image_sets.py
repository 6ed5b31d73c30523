"""Sets of images: read in order, batch by batch; every bad file is one clear line that names it."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from evaluating import Trap, pictures, refused
from PIL import Image

from dit_shd.data.image_folders import FolderImages
from dit_shd.data.image_sets import ArrayImages, NpzImages, spread
from dit_shd.data.sources.npz import NpzSource


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


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(9):
            archive.writestr(f"{i}.png", b"")


BAD_FILES = {
    "missing": (lambda p: p.unlink(), "found nothing at"),
    "text": (lambda p: p.write_bytes(b"hello"), "found text ('hello' ...)"),
    "one array": (lambda p: np.save(p.open("wb"), pictures(9, 0)), "write numpy.savez(path, images)"),
    "two arr_0": (two_arrays, "wanted one arr_0, found 2"),
    "empty": (lambda p: p.write_bytes(b""), "found an empty file"),
    "cut file": (cut_file, "found a broken one (its end is missing)"),
    "cut array": (cut_member, "cut short"),
    "flipped byte": (flip_byte, "found a broken one"),
    "no arr_0": (lambda p: np.savez(p, images=pictures(9, 0)), "wanted images in arr_0, found 1 (images.npy)"),
    "many": (lambda p: np.savez(p, **{f"a{i:04}": 0 for i in range(2000)}), "found 2000 (a0000.npy, a0001.npy, "),
    "pictures": (zipped, "found 9 (0.png, 1.png, 2.png, ...); unpack it and give the folder"),
    "float": (lambda p: np.savez(p, pictures(9, 0) / 255), "found float64"),
    "signed": (lambda p: np.savez(p, pictures(9, 0).astype(np.int64)), "found int64"),
    "three axes": (lambda p: np.savez(p, pictures(9, 0)[..., 0]), "wanted images uint8 [n,y,x,c]"),
    "channels first": (
        lambda p: np.savez(p, pictures(9, 0, (28, 28, 3)).transpose(0, 3, 1, 2)),
        "channels last",
    ),
    "videos": (lambda p: np.savez(p, pictures(9, 0)[None]), "videos are evaluated by their frames alone"),
    "no images": (lambda p: np.savez(p, pictures(9, 0)[:0]), "wanted at least 1 image"),
    "objects": (lambda p: np.savez(p, np.array([Trap(p.parent / "mark")])), "found object"),
    "object labels": (lambda p: np.savez(p, pictures(9, 0), np.array([Trap(p.parent / "mark")])), "never unpickled"),
    "one number": (
        lambda p: np.savez(p, pictures(9, 0), np.array(["01", "1", "2"] * 3)),
        "wanted classes of different numbers, found 01 and 1; rename one of them",
    ),
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
def test_what_is_no_label_for_each_image_is_left_out_and_noted(tmp_path, given):
    np.savez(tmp_path / "s.npz", pictures(6, 0), given)
    found = NpzImages(tmp_path / "s.npz", "s")
    assert found.labels is None
    assert f"arr_1 ({given.dtype} {list(given.shape)}) is not a label for each of 6 images" in found.notes[0]


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
    assert "feature network digits reads images of 28 x 28" in refused(files)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_images_are_taken_by_number_from_any_set(files, size):
    folder, images = files["folder"] / "pngs", pictures(40, seed=1)
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(folder / f"{i:03}.png")
    wanted = np.array([3, 39, 0, 17])
    for found in (NpzImages(files["samples"], "x"), FolderImages(folder, "x"), ArrayImages(images, "x")):
        np.testing.assert_array_equal(found.take(wanted, size), images[wanted])


def test_an_npz_is_read_batch_by_batch_in_order(files):
    found = NpzImages(files["samples"], "x")
    batches = list(found.batches(16))
    assert [len(batch) for batch in batches] == [16, 16, 8]
    np.testing.assert_array_equal(np.concatenate(batches), pictures(40, seed=1))
    assert found.labels is not None
    assert found.labels.tolist() == [i % 10 for i in range(40)]


@pytest.mark.parametrize("kind", ["U", "S"])
def test_labels_that_are_texts_keep_their_names_and_numbers_their_order(tmp_path, kind):
    """10 is not between 1 and 2: latents of such a file had other classes than the file."""
    images = np.zeros((24, 2, 2, 3), np.uint8)
    texts = np.array([str(i % 12) for i in range(24)])
    np.savez(tmp_path / "numbers.npz", images, texts.astype(kind))
    source = NpzSource(tmp_path / "numbers.npz")
    assert [source.classes[label] for label in source.labels] == texts.tolist()
    assert source.labels.tolist() == [i % 12 for i in range(24)]
    np.savez(tmp_path / "names.npz", images[:3], np.array(["dog", "10", "cat"]).astype(kind))
    source = NpzSource(tmp_path / "names.npz")
    assert source.classes == ("10", "cat", "dog") and source.labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_what_is_spread_is_of_every_class_sorted_or_in_turn(classes):
    """At equal distances of a set whose classes come in turn there would be some of them alone."""
    n, count = 50 * classes, 10 * classes
    chosen = spread(n, count)
    assert (np.diff(chosen) > 0).all() and (chosen // 5 == np.arange(count)).all()
    for labels in (np.arange(n) % classes, np.arange(n) * classes // n):
        assert len(set(labels[chosen])) == classes
    assert spread(7, 7).tolist() == list(range(7)) and not len(spread(7, 0))


def test_names_that_are_no_utf8_are_classes_of_their_own(tmp_path):
    np.savez(tmp_path / "x.npz", pictures(3, 0), np.array([b"\xff", b"\xfe", b"ant"]))
    images = NpzImages(tmp_path / "x.npz", "x")
    assert images.class_names == ("\\xfe", "\\xff", "ant") and images.labels.tolist() == [1, 0, 2]
