"""One npz as a source."""

import numpy as np

from dit_shd.data.sources.base import NO_LABELS
from dit_shd.data.sources.npz import NpzSource

IMAGES = np.zeros((3, 2, 2, 3), np.uint8)


def test_labels_that_are_not_one_for_each_image_are_said(tmp_path):
    np.savez(tmp_path / "x.npz", IMAGES, np.arange(4))
    source = NpzSource(tmp_path / "x.npz")
    assert source.classes == ("all",)
    assert [*source.notes] == ["arr_1 (int64 [4]) is not a label for each of 3 images and was left out", NO_LABELS]


def test_labels_from_1_are_said_to_leave_class_0_without_an_image(tmp_path):
    np.savez(tmp_path / "x.npz", IMAGES, np.array([1, 2, 3]))
    assert [*NpzSource(tmp_path / "x.npz").notes] == ["classes without an image: 1 (0) of 4"]
    np.savez(tmp_path / "x.npz", IMAGES, np.array([0, 1, 1]))
    assert not NpzSource(tmp_path / "x.npz").notes


def test_texts_that_are_numbers_are_said_to_be_places(tmp_path):
    np.savez(tmp_path / "x.npz", IMAGES, np.array(["10", "11", "10"]))
    source = NpzSource(tmp_path / "x.npz")
    assert (source.classes, source.labels.tolist()) == (("10", "11"), [0, 1, 0])
    assert [*source.notes] == ["labels are places in the order of the classes, not their numbers: 10 is label 0"]
