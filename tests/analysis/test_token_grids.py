"""Tokens in rows and columns as the latents lie, or in a line."""

import pytest
import torch

from dit_shd.analysis.token_grids import grids, layout
from dit_shd.attention.capture import Capture


def test_tokens_lie_as_the_latents_do():
    assert layout(15, {"hidden_states": torch.zeros(1, 4, 6, 10)}) == (3, 5)
    assert layout(16, {"pixel_values": torch.zeros(1, 3, 8, 8)}) == (4, 4)
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(2.0), torch.arange(8.0))
    assert layout(16, {"hidden_states": torch.zeros(1, 16, 4), "img_ids": ids}) == (2, 8)
    assert layout(16, {"hidden_states": torch.zeros(1, 16, 4), "img_ids": ids.expand(3, -1, -1)}) == (2, 8)  # a batch
    assert layout(15, {"hidden_states": torch.zeros(1, 15, 4)}) is None
    assert layout(12, {"hidden_states": torch.zeros(1, 4, 6, 10)}) is None
    assert layout(15, {"hidden_states": torch.zeros(1, 4, 1, 6, 10)}) == (3, 5), "one frame"
    packed = {"hidden_states": torch.zeros(1, 16, 4)}
    assert layout(16, {**packed, "img_shapes": [(1, 2, 8)]}) == (2, 8)
    assert layout(16, {**packed, "num_frames": torch.tensor(1), "height": torch.tensor(2), "width": 8}) == (2, 8)


@pytest.mark.parametrize(
    ("tokens", "keywords"),
    [
        (64, {"hidden_states": torch.zeros(4, 4, 4, 8, 8)}),  # four frames of 4 x 4
        (16, {"hidden_states": torch.zeros(1, 4, 16, 8, 8)}),  # attention over the frames alone
        (16, {"hidden_states": torch.zeros(4, 4, 16)}),  # sound
        (16, {"hidden_states": torch.zeros(1, 16, 4), "num_frames": 4, "height": 2, "width": 2}),
        (16, {"hidden_states": torch.zeros(1, 16, 4), "img_shapes": [[(1, 2, 4), (1, 2, 4)]]}),  # two images
    ],
)
def test_frames_and_sound_are_lines_also_where_their_number_is_a_square(tokens, keywords):
    """As a square picture, tokens of several frames had stood beside each other."""
    assert layout(tokens, keywords) is None


@pytest.mark.parametrize(
    ("block", "keys", "where", "expected"),
    [
        ("joint", 16, None, ((4, 4), (4, 4))),  # an image alone
        ("joint", 9, None, ((4, 4), None)),  # cross-attention to nine words
        ("joint", 16, slice(9, None), (None, None)),  # text and image in one sequence, which happens to be a square
        ("image-text", 9, None, ((4, 4), None)),
    ],
)
def test_text_is_a_line_also_where_its_number_is_a_square(block, keys, where, expected):
    x, y = torch.zeros(1, 2, 16, 4), torch.zeros(1, 2, keys, 4)
    keywords = {"hidden_states": torch.zeros(1, 4, 8, 8), "encoder_hidden_states": torch.zeros(1, 9, 5)}
    assert grids("x", Capture(x, y, y, 1.0, image=where), block, keywords) == expected
