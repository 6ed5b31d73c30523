"""Blocks of a map of image and text, and where the image is found to stand."""

import re

import oracle
import pytest
import torch
import torch.nn.functional as F
import zoo
from small_attention import E, Net, inputs
from small_dits import dit, run, sd3
from torch import nn

from dit_shd import SHD, capture
from dit_shd.core.errors import UserError


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


@pytest.mark.parametrize("name", ["SD3Transformer2DModel", "FluxTransformer2DModel", "CogVideoXTransformer3DModel"])
def test_a_block_of_a_joint_map_is_the_map_over_its_keys(name):
    """Renormalised, whatever the order of text and image; the joint map by query type is the same rows."""
    model, inputs = zoo.build(name), zoo.draw(name)
    found = {}
    with torch.no_grad():
        for block in ("joint", "image", "image-text", "text-image"):
            with capture(model, block=block) as found[block]:
                zoo.forward(model, inputs)
    for layer, image in found["image"].items():
        n, text = image.shape[2], found["image-text"][layer].shape[3]
        if layer in found["text-image"]:  # SD3's last block does not use its text rows
            assert found["text-image"][layer].shape[2:] == (text, n)
        joint = found["joint"][layer]
        maps = joint.map()
        if joint.shape[2] == n + text:  # one projection for both: the map is whole
            first = 0 if order(model, layer) == "image first" else text
            maps = maps[:, :, first : first + n]
        keys = maps[..., :n] if order(model, layer) == "image first" else maps[..., text:]
        torch.testing.assert_close(image.map(), keys / keys.sum(-1, keepdim=True))
        both = oracle.maps(image.query, torch.cat([image.key, found["image-text"][layer].key], 2), image.scale)
        torch.testing.assert_close(both[..., :n], keys)


def order(model, layer):
    """Where the tokens stand, by diffusers' code."""
    return "image first" if "SD3" in type(model).__name__ else "text first"


def test_a_block_needs_to_know_where_the_image_is():
    model = dit(2)
    with pytest.raises(UserError, match="no block 'image'"), torch.no_grad(), capture(model, block="image"):
        run(model)
    with pytest.raises(UserError, match="block: wanted one of"), capture(model, block="pictures"):  # type: ignore
        pass


def test_layers_of_the_image_alone_have_no_block_and_count_as_having_run():
    teacher, student = sd3(4), sd3(2)
    r = torch.Generator().manual_seed(0)
    x, text, pooled = (torch.randn(2, *shape, generator=r) for shape in ((4, 8, 8), (5, 16), (16,)))
    for _ in range(2):  # the forward that shows what the model is, and one that is recorded
        with capture(teacher, block="image") as t, capture(student, block="image") as s:
            with torch.no_grad():
                teacher(x, text, pooled, torch.tensor([500.0]))
            student(x, text, pooled, torch.tensor([500.0]))
        assert list(s) == ["transformer_blocks.0.attn", "transformer_blocks.1.attn"] and not s.skipped
        assert SHD()(t, s) > 0


def test_where_the_image_is_may_be_told():
    name = "ErnieImageTransformer2DModel"
    if name not in zoo.classes():
        pytest.skip(f"this diffusers has no {name}")
    model, inputs = zoo.build(name), zoo.draw(name)
    with torch.no_grad(), capture(model, block="image", image=slice(0, 16)) as captures:
        zoo.forward(model, inputs)
    assert {c.shape[2:] for c in captures.values()} == {(16, 16)}
    with pytest.raises(UserError, match="a run at one end"), capture(model, block="image", image=slice(2, 16)):
        zoo.forward(model, inputs)


@pytest.mark.parametrize("image", [slice(0, 10), slice(5, None)])
def test_a_place_of_the_image_other_than_the_models_is_refused(image):
    """Rows of the image had been given the text's W^O."""
    r = torch.Generator().manual_seed(0)
    x, text, pooled = (torch.randn(2, *shape, generator=r) for shape in ((4, 8, 8), (5, 16), (16,)))
    model = sd3(2)
    with torch.no_grad(), capture(model, image=slice(None, 16)) as captures:
        model(x, text, pooled, torch.tensor([500.0]))
    assert captures["transformer_blocks.0.attn"].shape[2:] == (16, 21)
    says = "the model says that its image is tokens 0 to 15 of 21"
    with pytest.raises(UserError, match=says), torch.no_grad(), capture(model, image=image):
        model(x, text, pooled, torch.tensor([500.0]))


class Words(torch.nn.Module):
    """Text before the patches of a picture, by one projection; its tokens are given as numbers, or in a mapping."""

    def __init__(self):
        super().__init__()
        self.words, self.patch = torch.nn.Embedding(9, 16), torch.nn.Conv2d(1, 16, 2, 2)
        self.qkv, self.out = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16)

    def forward(self, latents, tokens):
        tokens = tokens["numbers"] if isinstance(tokens, dict) else tokens
        x = torch.cat([self.words(tokens), self.patch(latents).flatten(2).transpose(1, 2)], dim=1)
        q, k, v = (y.unflatten(2, (2, 8)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return (x + self.out(mixed))[:, tokens.shape[1] :]


@pytest.mark.parametrize("known", [True, False])
def test_the_block_of_captions_of_other_lengths(known):
    """By the lengths of what the model is given; where those are hidden, it is an error and not the whole map."""
    model, x = Words(), torch.randn(2, 1, 8, 8)
    with torch.no_grad(), capture(model) as captures:
        for length in (5, 5, 3):
            tokens = torch.randint(9, (2, length))
            model(x, tokens if known else {"numbers": tokens})
            (layer,) = captures.values()
            assert layer.shape[2:] == (16 + length, 16 + length)
            if known or length == 5:
                assert layer.over_image().shape[2:] == (16, 16)
                torch.testing.assert_close(layer.over_image().query, layer.query[:, :, length:])
            else:
                with pytest.raises(UserError, match=r"where the image stands among 19 tokens .* is not known"):
                    layer.over_image()


class Streams(nn.Module):
    """Streams of one sequence, each with the weights of some name."""

    def __init__(self, names):
        super().__init__()
        self.names = names
        self.qkv, self.proj = (nn.ModuleDict({n: nn.Linear(E, k * E) for n in sorted({*names})}) for k in (3, 1))

    def forward(self, *x):
        made = [self.qkv[n](each).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4) for n, each in zip(self.names, x)]
        rows = F.scaled_dot_product_attention(*torch.cat(made, 3)).transpose(1, 2).flatten(2)
        parts = rows.split([each.shape[1] for each in x], 1)
        return [each + self.proj[n](part) for n, each, part in zip(self.names, x, parts)]


class OfStreams(nn.Module):
    def __init__(self, names, image):
        super().__init__()
        self.blocks, self.image = nn.ModuleList(Streams(names) for _ in range(2)), image

    def forward(self, first, second, third):
        x = [first, second, third]
        for block in self.blocks:
            x = block(*x)
        return x[self.image]


@pytest.mark.parametrize(
    ("names", "image"),
    [
        (["image", "clip", "text"], 0),
        (["clip", "text", "image"], 2),
        (["text", "image", "clip"], 1),
        (["image", "text", "image"], 2),
        (["image", "text", "image"], 0),
        (["text", "image", "text"], 1),
    ],
)
def test_streams_that_do_not_part_at_one_edge_have_no_projection(names, image):
    """Of three, or of two that interleave, some rows had the W^O of others without a word."""
    model, student = OfStreams(names, image), OfStreams(names, image)
    for seed in range(2):
        x = [torch.randn(2, n, E, generator=torch.Generator().manual_seed(seed)) for n in (4, 5, 6)]
        with capture(model) as t, capture(student) as s:
            with torch.no_grad():
                model(*x)
            student(*x)
        assert [each.shape for each in t.values()] == [(2, 4, 15, 15)] * 2
        assert t["blocks.0"].out is None
        assert re.match(r"its rows arrive at [23] projections, not at one of a text", t["blocks.0"].why_no_out)
        assert SHD(method="constant")(t, s) > 0


@pytest.mark.parametrize("image", [1, 2])
def test_streams_of_two_projections_with_one_edge_have_each_their_own(image):
    model = OfStreams(["text", "image", "image"], image)
    for lengths in ((4, 5, 6), (4, 5, 6), (4, 6, 5)):
        with torch.no_grad(), capture(model) as captures:
            model(*(torch.randn(2, n, E) for n in lengths))
        for name, proj in (("blocks.0", "image"), ("blocks.0:text", "text")):
            weight = model.blocks[0].proj[proj].weight.T
            torch.testing.assert_close(captures[name].out.flatten(0, 1), weight)
        assert captures["blocks.0"].shape == (2, 4, 11, 15)
