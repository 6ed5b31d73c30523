"""Self, cross, image and text as functions of lineages."""

import pytest

from dit_shd.attention.recording.lineage import ENTERED, Lineage
from dit_shd.attention.recording.roles import (
    Given,
    Lengths,
    TextLength,
    image_streams,
    order_at,
    order_of,
    role_of,
    text_length,
)

IMAGE, TEXT, NONE = frozenset({"hidden"}), frozenset({"encoder_hidden"}), frozenset[str]()
LEFT = ((5, TEXT), (9, IMAGE))
"""Text first."""
RIGHT = LEFT[::-1]


def of(streams, *segments, **more):
    return Lineage(frozenset(streams), segments, **more)


@pytest.mark.parametrize(
    ("query", "key", "n", "m", "role"),
    [
        (of("x"), of("x"), 9, 9, "self"),
        (of("x"), of("y"), 9, 5, "cross"),
        (of("x"), of("y"), 1, 5, "cross"),
        (of("x"), of("xy", (9, frozenset("x")), (5, frozenset("y"))), 9, 14, "self"),  # its own keys and another's
        (of("x"), of("xp", (3, NONE), (9, frozenset("x"))), 9, 12, "self"),  # learned keys before
        (of("x"), of("x"), 1, 9, "pooling"),
        (of("x"), of("x"), 1, 1, "self"),  # a sequence of one token
        (of("x"), of("xp", (3, NONE), (1, frozenset("x"))), 1, 4, "self"),  # the same with learned keys
        (None, of("x"), 9, 9, "unknown"),
        (of("x"), None, 9, 9, "unknown"),
    ],
)
def test_whose_keys_a_query_sees(query, key, n, m, role):
    assert role_of(query, key, n, m) == role


@pytest.mark.parametrize(
    ("segments", "image", "order"),
    [
        (LEFT, IMAGE, ("text first", 5)),
        (RIGHT, IMAGE, ("image first", 5)),
        (((3, NONE), *LEFT), IMAGE, ("text first", 8)),  # the model's own tokens go with what follows
        ((*LEFT, (3, NONE)), IMAGE, ("text first", 5)),
        ((*RIGHT, (3, NONE)), IMAGE, ("image first", 8)),
        ((*LEFT, (5, TEXT)), IMAGE, ("unknown", 0)),
        (LEFT, NONE, ("unknown", 0)),
        ((), IMAGE, ("plain", 0)),
        (((14, IMAGE),), IMAGE, ("plain", 0)),
    ],
)
def test_how_text_and_image_stand(segments, image, order):
    assert order_of(segments, image) == order


def test_where_two_projections_meet_is_the_edge():
    assert order_at(LEFT, IMAGE, 5) == ("text first", 5)
    assert order_at(RIGHT, IMAGE, 9) == ("image first", 5)
    assert order_at(LEFT, IMAGE, 7) == ("unknown", 0)


@pytest.mark.parametrize(
    ("outputs", "names", "image"),
    [
        ([of(IMAGE)], (IMAGE, TEXT), IMAGE),  # what the model gives has the image's tokens
        ([of(IMAGE | TEXT)], (IMAGE, TEXT), IMAGE),  # names, where it gives both
        ([of(IMAGE | {"b"})], (IMAGE, frozenset("b")), NONE),
        ([of(IMAGE, level=ENTERED)], (IMAGE, frozenset("b")), NONE),
    ],
)
def test_which_inputs_are_the_images(outputs, names, image):
    joined = of(names[0] | names[1], (5, names[1]), (9, names[0]))
    assert image_streams([joined, None], outputs) == image


def test_how_many_tokens_are_text_follows_from_an_input_of_that_length():
    x, c = Given("x", 9, IMAGE), Given("c", 5, TEXT)
    by_module = text_length(5, 14, IMAGE, TEXT, [x, c], [])
    assert (by_module.place, by_module.name, by_module.of) == ("module", "c", "text")
    assert by_module.among(20, {"x": 13, "c": 7}, {}, Lengths(), same=False) == 7
    by_image = text_length(5, 14, IMAGE, TEXT, [], [x])
    assert (by_image.place, by_image.of) == ("model", "image")
    assert by_image.among(20, {}, {"x": 13}, Lengths(), same=False) == 7
    clip = Given("clip", 5, frozenset({"clip"}))
    assert text_length(5, 14, IMAGE, TEXT, [clip, c], []).name == "c"
    assert text_length(5, 14, IMAGE, TEXT, [clip], []).place == "fixed"
    fixed = text_length(5, 14, IMAGE, TEXT, [], [])
    assert fixed == TextLength("fixed", "", "text", 14, 5)
    # unknown is not guessed: as many tokens may be others, and other numbers of them the same
    cases = [(14, True), (14, False), (15, True)]
    assert [fixed.among(n, {}, {}, Lengths(), same) for n, same in cases] == [5, None, None]


def test_how_many_tokens_are_text_follows_from_the_layers_before():
    lengths = Lengths()
    lengths.note("text", 7, None, "plain")
    lengths.note("image", 13, None, "plain")
    lengths.note("joint", 20, 7, "text first")
    lengths.note("joint", 99, 70, "text first")  # a second call
    lengths.note("other", 20, None, "unknown")
    for name, stream in (("text", "text"), ("image", "image"), ("joint", "text"), ("joint", "image")):
        found = TextLength("layer", name, stream, 14, 5)
        assert found.among(20, {}, {}, lengths, same=False) == 7
    assert TextLength("layer", "other", "text", 20, 5).among(20, {}, {}, lengths, same=False) is None
    assert TextLength("layer", "gone", "text", 14, 5).among(14, {}, {}, lengths, same=True) == 5
