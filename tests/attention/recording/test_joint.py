"""Blocks of a map of image and text."""

import pytest
import torch
from small_attention import Net, inputs

from dit_shd import capture


@pytest.mark.parametrize("block", ["image", "image-text", "text-image"])
def test_a_block_of_some_keys_has_a_softmax_of_its_own(block):
    """What attention gave is that of all keys, and not kept."""
    model, text, image = Net(depth=1), slice(0, 2), slice(2, 6)
    rows = text if block == "text-image" else image
    keys = text if block == "image-text" else image
    with torch.no_grad(), capture(model) as whole, capture(model, block=block, image=image) as captures:
        model(inputs())
    (layer,), joint = captures.values(), whole["blocks.0"]
    assert layer.mixed is None and joint.mixed is not None
    torch.testing.assert_close(layer.map(), joint.scores(slice(None))[:, :, rows, keys].softmax(-1))
