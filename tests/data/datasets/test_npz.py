"""One npz file as a dataset."""

import numpy as np
import pytest
import torch

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import Draws
from dit_shd.data.datasets import DATASETS


def test_flips_mirror_half_of_the_images(shapes):
    plain = DATASETS.build(Plugin("npz", {"path": str(shapes)}))
    flipped = DATASETS.build(Plugin("npz", {"path": str(shapes), "flip": True}))
    indices = np.arange(60)
    a, b = (d.batch(indices, Draws(0, 0, range(60), 60))["latents"] for d in (plain, flipped))
    mirrored = [torch.equal(x.flip(-1), y) and not torch.equal(x, y) for x, y in zip(a, b)]
    assert all(m or torch.equal(x, y) for m, x, y in zip(mirrored, a, b))
    assert 15 < sum(mirrored) < 45


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((4, 3, 8, 8), np.uint8), np.zeros(4, int), r"wanted images uint8 \[n,y,x,c\] with c = 1 or 3"),
        (np.zeros((4, 8, 8, 4), np.uint8), np.zeros(4, int), r"wanted images uint8 \[n,y,x,c\] with c = 1 or 3"),
        (np.zeros((1, 8, 8, 3), np.uint8), np.array([2**40]), r"arr_1: wanted labels below 1048576"),
        (np.float32(1), np.zeros(1, int), r"arr_0: wanted uint8"),
    ],
)
def test_arrays_that_are_no_images_with_classes_are_refused(tmp_path, images, labels, message):
    np.savez(tmp_path / "x.npz", images, labels)
    with pytest.raises(UserError, match=message):
        DATASETS.build(Plugin("npz", {"path": str(tmp_path / "x.npz")}))


@pytest.mark.parametrize(
    ("write", "content"),
    [
        (lambda file: np.savez(file, np.zeros((2, 8, 8, 3), np.uint8)), "arr_0"),
        (lambda file: np.savez(file, **{f"a{i}": np.zeros(2) for i in range(7)}), "a0, a1, a2, a3, a4, ..."),
        (lambda file: np.save(file.open("wb"), np.zeros(3)), "one array (.npy)"),
        (lambda file: file.write_text("text"), "no npz, or a damaged one"),
    ],
)
def test_what_a_file_holds_instead_and_what_to_do_is_said(tmp_path, write, content):
    write(tmp_path / "x.npz")
    with pytest.raises(UserError) as refused:
        DATASETS.build(Plugin("npz", {"path": str(tmp_path / "x.npz")}))
    assert f"arr_1 (labels), found {content}; np.savez(FILE, images, labels) writes one" in str(refused.value)


def test_latents_are_not_mirrored(tmp_path):
    np.savez(tmp_path / "x.npz", np.zeros((2, 4, 8, 8), np.float32), np.zeros(2, int))
    with pytest.raises(UserError, match="flip: wanted none of latents"):
        DATASETS.build(Plugin("npz", {"path": str(tmp_path / "x.npz"), "flip": True}))


def test_images_fill_the_range_from_minus_one_to_one(tmp_path):
    images = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1)
    np.savez(tmp_path / "x.npz", images, np.zeros(3, int))
    data = DATASETS.build(Plugin("npz", {"path": str(tmp_path / "x.npz")}))
    found = data.batch(np.arange(3), Draws(0, 0, range(3), 3))["latents"]
    assert found.flatten().tolist() == pytest.approx([-1, -0.6, 1])
