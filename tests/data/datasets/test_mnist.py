"""MNIST's files: what is read, and files that are not what they should be."""

import gzip
import struct

import numpy as np
import pytest

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import Draws
from dit_shd.data.datasets import DATASETS
from dit_shd.data.datasets.mnist import FASHION, NAMES


def write(folder, images, labels, part="train", compress=True):
    """A part in the published format."""
    folder.mkdir(exist_ok=True)
    head = struct.pack(">IIII", 2051, *images.shape), struct.pack(">II", 2049, len(labels))
    for name, header, data in (("images-idx3", head[0], images), ("labels-idx1", head[1], labels)):
        file = folder / f"{part}-{name}-ubyte{'.gz' if compress else ''}"
        file.write_bytes(gzip.compress(header + data.tobytes()) if compress else header + data.tobytes())
    return folder


@pytest.fixture
def made(tmp_path):
    r = np.random.default_rng(0)
    images, labels = r.integers(0, 256, (5010, 28, 28), np.uint8), r.integers(0, 10, 5010).astype(np.uint8)
    write(tmp_path / "mnist", images, labels)
    write(tmp_path / "mnist", images[:20] // 2, labels[:20], "t10k", compress=False)
    return tmp_path / "mnist", images, labels


def build(folder=None, **options):
    path = {} if folder is None else {"path": str(folder)}
    return DATASETS.build(Plugin("mnist", {**path, **options}), "data")


def test_splits_are_the_files_parts(made):
    folder, images, labels = made
    train, held_out, both, test = (build(folder, split=s) for s in ("train", "validation", "all", "test"))
    assert [len(data) for data in (train, held_out, both, test)] == [10, 5000, 5010, 20]
    assert np.array_equal(np.concatenate([train.images(), held_out.images()])[..., 0], images)
    assert np.array_equal(both.labels(), labels) and both.labels().dtype == np.int64
    assert np.array_equal(test.image(3)[..., 0], images[3] // 2)
    batch = train.batch(np.array([4, 1]), Draws(0, 0, [0, 1], 2))
    assert batch["latents"].shape == (2, 1, 28, 28)
    assert np.allclose(batch["latents"][1, 0].numpy(), images[1] / 127.5 - 1, atol=1e-6)
    assert batch["labels"].tolist() == [labels[4], labels[1]]
    assert build(folder, kind="fashion").class_names == NAMES["fashion"]


def damage(folder, change, name="train-images-idx3-ubyte"):
    file = folder / f"{name}.gz"
    file.write_bytes(change(gzip.decompress(file.read_bytes())))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"no gzip", "not such a file of MNIST"),
        (lambda data: gzip.compress(data)[:-40], "not such a file of MNIST"),
        (lambda data: gzip.compress(data[:-1]), "it announces 3927840 bytes and has 3927839"),
        (lambda data: gzip.compress(data + b"\0" * 10**6), "it announces 3927840 bytes and has more"),
        (lambda data: gzip.compress(b"\0\0\x08\x01" + data[4:]), "its head says"),
        (lambda data: gzip.compress(data[:4] + b"\xff" * 4 + data[8:]), "its head says"),
        (lambda data: gzip.compress(b""), "its head says"),
    ],
)
def test_a_damaged_file_is_refused(made, change, message):
    damage(made[0], change)
    with pytest.raises(UserError, match=message) as error:
        build(made[0])
    assert "\n" not in str(error.value)


def test_labels_that_do_not_fit_are_refused(made):
    damage(made[0], lambda data: gzip.compress(data[:-1] + b"\x0a"), "train-labels-idx1-ubyte")
    with pytest.raises(UserError, match="wanted as many labels as images, from 0 to 9, found 5010 up to 10"):
        build(made[0])


def test_files_that_are_not_there_are_named_with_what_brings_them(tmp_path):
    with pytest.raises(UserError, match=r"path: wanted the folder of MNIST's four files .* data=\{name: digits\}"):
        build()
    with pytest.raises(UserError, match=r"wanted train-images-idx3-ubyte\.gz in .*, found none$"):
        build(tmp_path)
    write(tmp_path, np.zeros((3, 28, 28), np.uint8), np.zeros(3, np.uint8))
    with pytest.raises(UserError, match="wanted more than 5000 images for split=train, found 3"):
        build(tmp_path)


@pytest.mark.skipif(not FASHION.is_dir(), reason="apt install dataset-fashion-mnist")
def test_debians_fashion_mnist_is_the_published_one():
    train, test = (build(kind="fashion", split=split) for split in ("all", "test"))
    assert np.bincount(train.labels()).tolist() == [6000] * 10 and np.bincount(test.labels()).tolist() == [1000] * 10
