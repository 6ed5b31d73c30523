"""ModelShape: the sizes of a model, whatever its config calls them."""

import pytest
import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel
from torch import nn

from dit_shd.models.families.dit import DiT
from dit_shd.models.shape import is_conditional, shape_of

SIZES = dict(num_layers=2, num_attention_heads=3, attention_head_dim=8, in_channels=4, sample_size=6, patch_size=2)


def test_the_sizes_are_those_of_the_tensors():
    model = DiT(**SIZES, num_classes=5)
    shape = shape_of(model)
    assert model.x_embedder(torch.zeros(1, *shape.latents)).shape == (1, shape.tokens, shape.width)
    assert model.y_embedder.embedding_table.num_embeddings == shape.classes + 1
    assert len(model.blocks) == shape.layers
    assert {block.attn.heads for block in model.blocks} == {shape.heads}
    assert shape.class_names is None


def test_a_model_of_diffusers_and_a_compiled_one_have_the_same_sizes():
    wanted = shape_of(DiT(**SIZES, num_classes=5))
    for model in (DiTTransformer2DModel(**SIZES, num_embeds_ada_norm=5), torch.compile(DiT(**SIZES, num_classes=5))):
        shape = shape_of(model)
        names = ("layers", "heads", "width", "patch", "tokens", "latents", "classes")
        assert [getattr(shape, name) for name in names] == [getattr(wanted, name) for name in names]
        assert is_conditional(model)


def test_the_error_names_the_size_that_is_missing():
    sizes = dict(SIZES, joint_attention_dim=8, caption_projection_dim=24, pooled_projection_dim=8)
    for model in (SD3Transformer2DModel(**sizes), nn.Linear(2, 2)):
        assert not is_conditional(model)
        with pytest.raises(ValueError, match=rf"{type(model).__name__}: .* not name num_classes"):
            _ = shape_of(model).classes
