"""Where the image stands in one stream of text and image, when both have other numbers of tokens than at first."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import AuraFlowTransformer2DModel, ZImageTransformer2DModel
from small_attention import E
from torch import nn

from dit_shd import capture


def aura():
    """A joint block, whose text is an input, and one of a single stream, whose is not: registers come first."""
    return AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16, out_channels=4, pos_embed_max_size=16,
    ).eval()  # fmt: skip


def z_image():
    """Lists of images and of captions, and layers of either alone before those of both."""
    return ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=16, n_layers=1, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, cap_feat_dim=12, axes_dims=[4, 2, 2], axes_lens=[512, 64, 64],
    ).eval()  # fmt: skip


def run_aura(model, side, words):
    model(torch.randn(2, 4, *side), encoder_hidden_states=torch.randn(2, words, 16), timestep=torch.rand(2))


def run_z_image(model, side, words):
    images, captions = [torch.randn(4, 1, *side) for _ in range(2)], [torch.randn(words, 12) for _ in range(2)]
    model(images, torch.rand(2), captions, return_dict=False)


@pytest.mark.parametrize(
    ("build", "run", "layer", "sizes"),
    [
        (aura, run_aura, "single_transformer_blocks.0.attn", (((8, 8), 5), ((6, 8), 9), ((4, 4), 5))),
        (z_image, run_z_image, "layers.0.attention", (((16, 16), 20), ((8, 16), 40), ((16, 16), 40))),
    ],
)
def test_the_image_is_where_the_layers_before_say(build, run, layer, sizes):
    """The second of the sizes has as many tokens in all as the first, and had had its place of the image."""
    torch.manual_seed(0)
    model = build()
    for (height, width), words in (*sizes, sizes[0]):
        image = height * width // 4
        with torch.no_grad(), capture(model) as captures:
            run(model, (height, width), words)
        where = captures[layer].image
        assert where is not None
        assert where.stop - where.start == image
        assert captures[layer].over_image().shape[2:] == (image, image)
        with torch.no_grad(), capture(model, layers=[layer], block="image") as block:
            if (height, width, words) == (*sizes[0][0], sizes[0][1]):  # those before are not looked at
                run(model, (height, width), words)
                assert block[layer].shape[2:] == (image, image)


class Block(nn.Module):
    """Text and image, each with weights of its own, in a tuple."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = (nn.ModuleList(nn.Linear(E, k * E) for _ in range(2)) for k in (3, 1))

    def forward(self, both):
        made = [qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4) for qkv, x in zip(self.qkv, both)]
        rows = F.scaled_dot_product_attention(*torch.cat(made, 3)).transpose(1, 2).flatten(2)
        parts = rows.split([x.shape[1] for x in both], 1)
        return tuple(x + proj(part) for proj, part, x in zip(self.proj, parts, both))


class Prompted(nn.Module):
    """Blocks of text and image; and a prompt of another kind, which has no part in them."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x, clip, text):
        text = text["text"] if "text" in text else x[:, :0]
        both = text, x + clip.mean(1, keepdim=True)
        for block in self.blocks:
            both = block(both)
        return both[1]


def check(model, *given):
    with torch.no_grad(), capture(model) as captures:
        model(*given)
    words = given[2]["text"].shape[1] if "text" in given[2] else 0
    image = captures["blocks.0"]
    assert image.shape[2:] == (9, 9 + words) and ("blocks.0:text" in captures) == (words > 0)
    torch.testing.assert_close(image.out.flatten(0, 1), model.blocks[0].proj[1].weight.T)
    if words:
        text = captures["blocks.0:text"]
        assert text.shape[2] == words
        torch.testing.assert_close(text.out.flatten(0, 1), model.blocks[0].proj[0].weight.T)


def test_the_text_is_as_long_as_the_text_not_as_what_was_as_long_at_first():
    """Another input before it that had as many tokens in the first forward had told where the image begins."""
    torch.manual_seed(0)
    model = Prompted()
    for clip, words in ((5, 5), (5, 7), (9, 7), (5, 5)):
        check(model, torch.randn(2, 9, E), torch.randn(2, clip, E), {"text": torch.randn(2, words, E)})


@pytest.mark.parametrize("first", [None, 0, 5])
def test_a_text_that_is_not_always_there_has_its_own(first):
    """Of a model whose first forward was without, the text's rows had been given the image's W^O."""
    torch.manual_seed(0)
    model = Prompted()
    for words in (first, 5, 0, None, 7):
        text = {} if words is None else {"text": torch.randn(2, words, E)}
        check(model, torch.randn(2, 9, E), torch.randn(2, 3, E), text)
