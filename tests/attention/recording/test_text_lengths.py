"""Where the image stands in one stream of text and image, when both have other numbers of tokens than at first."""

import pytest
import torch
from diffusers import AuraFlowTransformer2DModel, ZImageTransformer2DModel

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
