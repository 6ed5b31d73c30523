"""Fashion-MNIST under its own name."""

import struct

import numpy as np
import pytest

from dit_shd.core.plugins import Plugin
from dit_shd.data.datasets import DATASETS
from dit_shd.data.datasets.mnist import FASHION, NAMES
from dit_shd.data.open_images import open_images


def test_it_is_mnist_of_that_kind(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
    head = struct.pack(">IIII", 2051, *images.shape)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(head + images.tobytes())
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 6) + bytes([9, 0, 0, 3, 0, 2]))
    data = DATASETS.build(Plugin("fashion", {"split": "test", "path": str(tmp_path)}), "data")
    assert np.array_equal(data.images()[..., 0], images)
    assert data.labels().tolist() == [9, 0, 0, 3, 0, 2]
    assert data.class_names == NAMES["fashion"]
    assert "Fashion-MNIST" in type(data).described(split="test")


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_a_reference_is_named_by_dataset_and_split():
    images = open_images("fashion:test", "reference")
    assert images.shape == (10_000, 28, 28, 1)
    assert images.labels is not None and np.bincount(images.labels).tolist() == [1000] * 10
