"""Image transformers with self-attention, and cross-attention to the text where they have any."""

import torch

from .entry import Entry, indices, normal, padded, steps, text, times

# Four heads of width 8, two blocks, 8x8 latents in patches of 2: 16 tokens.
SMALL = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2}
LATENT = {"in_channels": 4, "sample_size": 8, "patch_size": 2}


def pixels(g):
    return normal(g, 2, 4, 8, 8)


def rotary(g, tokens, width):
    """A cosine and a sine [tokens, width], each angle for two neighbouring columns."""
    angle = normal(g, tokens, width // 2).repeat_interleave(2, dim=1)
    return angle.cos(), angle.sin()


ENTRIES = {
    "DiTTransformer2DModel": Entry(
        SMALL | LATENT | {"num_embeds_ada_norm": 10},
        lambda g: {"hidden_states": pixels(g), "timestep": steps(g, 2), "class_labels": indices(g, 10, 2)},
    ),
    "PixArtTransformer2DModel": Entry(
        SMALL | LATENT | {"cross_attention_dim": 32, "caption_channels": 12, "use_additional_conditions": False},
        lambda g: {
            "hidden_states": pixels(g),
            "encoder_hidden_states": text(g),
            "timestep": steps(g, 2),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
            "encoder_attention_mask": padded(2, 6),
        },
    ),
    "Transformer2DModel": Entry(
        SMALL | {"in_channels": 8, "norm_num_groups": 4, "cross_attention_dim": 12},
        lambda g: {"hidden_states": normal(g, 2, 8, 4, 4), "encoder_hidden_states": text(g)},
    ),
    "DreamLiteTransformer2DModel": Entry(
        SMALL | {"in_channels": 32, "norm_num_groups": 4, "cross_attention_dim": 12, "use_linear_projection": True},
        lambda g: {"hidden_states": normal(g, 2, 32, 4, 4), "encoder_hidden_states": text(g)},
    ),
    "PriorTransformer": Entry(
        SMALL | {"embedding_dim": 12, "num_embeddings": 7, "additional_embeddings": 4},
        lambda g: {
            "hidden_states": normal(g, 2, 12),
            "timestep": steps(g, 2),
            "proj_embedding": normal(g, 2, 12),
            "encoder_hidden_states": normal(g, 2, 7, 12),
            "attention_mask": padded(2, 7),
        },
    ),
    "HunyuanDiT2DModel": Entry(
        LATENT
        | {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 4, "hidden_size": 32}
        | {"cross_attention_dim": 12, "cross_attention_dim_t5": 16, "pooled_projection_dim": 6}
        | {"text_len": 4, "text_len_t5": 5},
        lambda g: {
            "hidden_states": pixels(g),
            "timestep": steps(g, 2).float(),
            "encoder_hidden_states": normal(g, 2, 4, 12),
            "text_embedding_mask": padded(2, 4).float(),
            "encoder_hidden_states_t5": normal(g, 2, 5, 16),
            "text_embedding_mask_t5": padded(2, 5).float(),
            "image_meta_size": torch.tensor([[64.0, 64.0, 16.0, 16.0, 0.0, 0.0]] * 2),
            "style": torch.zeros(2, dtype=torch.long),
            "image_rotary_emb": rotary(g, 16, 8),
        },
    ),
    "SanaTransformer2DModel": Entry(
        SMALL
        | LATENT
        | {"out_channels": 4, "num_cross_attention_heads": 4, "cross_attention_head_dim": 8}
        | {"cross_attention_dim": 32, "caption_channels": 12},
        lambda g: {
            "hidden_states": pixels(g),
            "encoder_hidden_states": text(g),
            "timestep": steps(g, 2),
            "encoder_attention_mask": padded(2, 6),
        },
    ),
    "LuminaNextDiT2DModel": Entry(
        {"sample_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 32, "num_layers": 2}
        | {"num_attention_heads": 4, "num_kv_heads": 2, "multiple_of": 16, "cross_attention_dim": 12},
        lambda g: {
            "hidden_states": pixels(g),
            "timestep": times(g, 2),
            "encoder_hidden_states": text(g),
            "encoder_mask": padded(2, 6),
            "image_rotary_emb": torch.polar(torch.ones(8, 8, 4), normal(g, 8, 8, 4)),
            "cross_attention_kwargs": {},
        },
    ),
}
