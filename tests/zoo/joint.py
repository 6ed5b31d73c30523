"""Image transformers whose attention joins text and image tokens."""

import torch

from .entry import Entry, grid, indices, normal, padded, steps, text, times

# Four heads of width 8: 32 wide; double-stream and single-stream blocks, two of each.
SMALL = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2}
STREAMS = SMALL | {"num_single_layers": 2, "in_channels": 4, "joint_attention_dim": 12}
AXES = (4, 2, 2)


def pixels(g):
    return normal(g, 2, 4, 8, 8)


def flux(g):
    """16 image tokens of 4 channels and 6 text tokens, with positions for the rotary embedding."""
    return {
        "hidden_states": normal(g, 2, 16, 4),
        "encoder_hidden_states": text(g),
        "timestep": times(g, 2),
        "img_ids": grid(1, 4, 4),
        "txt_ids": torch.zeros(6, 3),
    }


def flux_four(g):
    """The same with positions of four axes."""
    image = torch.cat((grid(1, 4, 4), torch.zeros(16, 1)), dim=1)
    words = torch.cat((torch.zeros(6, 3), torch.arange(6.0)[:, None]), dim=1)
    return flux(g) | {"img_ids": image, "txt_ids": words}


def cogview(g):
    """8x8 latents, six text tokens, and the sizes that CogView conditions on."""
    size = torch.tensor([[64.0, 64.0]] * 2)
    return {
        "hidden_states": pixels(g),
        "encoder_hidden_states": text(g),
        "timestep": steps(g, 2),
        "original_size": size,
        "target_size": size,
        "crop_coords": torch.zeros(2, 2),
    }


def lists(g):
    """One latent and one text per sample, in lists: the two texts differ in length."""
    return [normal(g, 4, 1, 8, 8) for _ in range(2)], [normal(g, n, 12) for n in (6, 4)]


COGVIEW = SMALL | {"in_channels": 4, "out_channels": 4, "text_embed_dim": 12, "time_embed_dim": 16, "condition_dim": 4}

ENTRIES = {
    "SD3Transformer2DModel": Entry(
        SMALL
        | {"num_layers": 3, "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4}
        | {"joint_attention_dim": 12, "caption_projection_dim": 32, "pooled_projection_dim": 10}
        | {"pos_embed_max_size": 8, "dual_attention_layers": (0,), "qk_norm": "rms_norm"},
        lambda g: {
            "hidden_states": pixels(g),
            "encoder_hidden_states": text(g),
            "pooled_projections": normal(g, 2, 10),
            "timestep": steps(g, 2),
        },
    ),
    "AuraFlowTransformer2DModel": Entry(
        {"sample_size": 8, "patch_size": 2, "num_mmdit_layers": 2, "num_single_dit_layers": 2}
        | {"attention_head_dim": 8, "num_attention_heads": 4, "joint_attention_dim": 12}
        | {"caption_projection_dim": 32, "pos_embed_max_size": 16},
        lambda g: {"hidden_states": pixels(g), "encoder_hidden_states": text(g), "timestep": times(g, 2)},
    ),
    "FluxTransformer2DModel": Entry(
        STREAMS | {"pooled_projection_dim": 10, "axes_dims_rope": AXES, "guidance_embeds": True},
        lambda g: flux(g) | {"pooled_projections": normal(g, 2, 10), "guidance": times(g, 2)},
    ),
    "Flux2Transformer2DModel": Entry(
        STREAMS | {"timestep_guidance_channels": 16, "axes_dims_rope": (2, 2, 2, 2)},
        lambda g: flux_four(g) | {"guidance": times(g, 2)},
    ),
    "Flux3Transformer2DModel": Entry(
        STREAMS | {"cond_in_channels": 4, "timestep_channels": 16, "axes_dims_rope": (2, 2, 2, 2)},
        lambda g: (
            flux_four(g)
            | {
                "image_cond_hidden_states": normal(g, 2, 4, 4),
                "image_cond_ids": torch.cat((grid(1, 2, 2) + 1, torch.zeros(4, 1)), dim=1),
            }
        ),
    ),
    "ChromaTransformer2DModel": Entry(
        STREAMS
        | {"attention_head_dim": 16, "axes_dims_rope": (4, 6, 6), "approximator_num_channels": 8}
        | {"approximator_hidden_dim": 16, "approximator_layers": 1},
        lambda g: flux(g) | {"attention_mask": torch.cat((padded(2, 6), torch.ones(2, 16, dtype=torch.bool)), dim=1)},
    ),
    "BriaTransformer2DModel": Entry(STREAMS | {"axes_dims_rope": AXES}, flux),
    "BriaFiboTransformer2DModel": Entry(
        STREAMS | {"axes_dims_rope": AXES, "text_encoder_dim": 6, "joint_attention_dim": 12},
        lambda g: flux(g) | {"text_encoder_layers": [normal(g, 2, 6, 6) for _ in range(4)]},
    ),
    "LongCatImageTransformer2DModel": Entry(
        STREAMS | {"pooled_projection_dim": 10, "axes_dims_rope": AXES},
        lambda g: flux(g) | {"guidance": times(g, 2)},
    ),
    "OvisImageTransformer2DModel": Entry(STREAMS | {"out_channels": 4, "axes_dims_rope": AXES}, flux),
    "QwenImageTransformer2DModel": Entry(
        SMALL | {"in_channels": 16, "out_channels": 4, "joint_attention_dim": 12, "axes_dims_rope": AXES},
        lambda g: {
            "hidden_states": normal(g, 2, 16, 16),
            "encoder_hidden_states": text(g),
            "encoder_hidden_states_mask": padded(2, 6),
            "timestep": times(g, 2),
            "img_shapes": [(1, 4, 4)] * 2,
        },
        older={"txt_seq_lens": [6, 5]},
    ),
    "NucleusMoEImageTransformer2DModel": Entry(
        SMALL
        | {"in_channels": 16, "out_channels": 4, "joint_attention_dim": 12, "axes_dims_rope": AXES}
        | {
            "num_key_value_heads": 2,
            "mlp_ratio": 16.0,
            "num_experts": 4,
            "moe_intermediate_dim": 16,
            "capacity_factors": 2.0,
        }
        | {"dense_moe_strategy": "leave_first_block_dense"},
        lambda g: {
            "hidden_states": normal(g, 2, 16, 16),
            "encoder_hidden_states": text(g),
            "encoder_hidden_states_mask": padded(2, 6).long(),
            "timestep": times(g, 2),
            "img_shapes": [(1, 4, 4)] * 2,
        },
    ),
    "CogView3PlusTransformer2DModel": Entry(COGVIEW | {"pos_embed_max_size": 8, "sample_size": 8}, cogview),
    "CogView4Transformer2DModel": Entry(COGVIEW | {"rope_axes_dim": (8, 8)}, cogview),
    "GlmImageTransformer2DModel": Entry(
        COGVIEW | {"prior_vq_quantizer_codebook_size": 32},
        lambda g: (
            {k: v for k, v in cogview(g).items() if k != "original_size"}
            | {"prior_token_id": indices(g, 32, 2, 16), "prior_token_drop": torch.tensor([False, True])}
        ),
    ),
    "HiDreamImageTransformer2DModel": Entry(
        SMALL
        | {"num_single_layers": 2, "patch_size": 2, "in_channels": 4, "out_channels": 4}
        | {"caption_channels": [12, 6], "text_emb_dim": 10, "num_routed_experts": 2, "num_activated_experts": 2}
        | {"axes_dims_rope": AXES, "max_resolution": (8, 8), "llama_layers": (0, 1, 1, 0)}
        | {"force_inference_output": True},
        lambda g: {
            "hidden_states": pixels(g),
            "timesteps": steps(g, 2),
            "encoder_hidden_states_t5": text(g),
            "encoder_hidden_states_llama3": normal(g, 2, 2, 6, 6),
            "pooled_embeds": normal(g, 2, 10),
        },
    ),
    "HunyuanImageTransformer2DModel": Entry(
        SMALL
        | {"num_single_layers": 2, "num_refiner_layers": 2, "in_channels": 4, "out_channels": 4}
        | {"text_embed_dim": 12, "text_embed_2_dim": 10, "rope_axes_dim": (4, 4), "patch_size": (2, 2)},
        lambda g: {
            "hidden_states": pixels(g),
            "timestep": steps(g, 2).float(),
            "encoder_hidden_states": text(g),
            "encoder_attention_mask": padded(2, 6),
            "encoder_hidden_states_2": normal(g, 2, 4, 10),
            "encoder_attention_mask_2": padded(2, 4),
        },
    ),
    "PRXTransformer2DModel": Entry(
        {"in_channels": 4, "context_in_dim": 12, "hidden_size": 32, "num_heads": 4, "depth": 2, "axes_dim": [4, 4]},
        lambda g: {
            "hidden_states": pixels(g),
            "timestep": times(g, 2),
            "encoder_hidden_states": text(g),
            "attention_mask": padded(2, 6),
        },
    ),
    "ErnieImageTransformer2DModel": Entry(
        {"hidden_size": 32, "num_attention_heads": 4, "num_layers": 2, "ffn_hidden_size": 32, "in_channels": 4}
        | {"out_channels": 4, "text_in_dim": 12, "rope_axes_dim": AXES},
        lambda g: {
            "hidden_states": normal(g, 2, 4, 4, 4),
            "timestep": times(g, 2),
            "text_bth": text(g),
            "text_lens": torch.tensor([6, 5]),
        },
    ),
    "Lumina2Transformer2DModel": Entry(
        {"sample_size": 8, "in_channels": 4, "hidden_size": 32, "num_layers": 2, "num_refiner_layers": 2}
        | {"num_attention_heads": 4, "num_kv_heads": 2, "multiple_of": 2, "axes_dim_rope": AXES}
        | {"axes_lens": (32, 32, 32), "cap_feat_dim": 12},
        lambda g: {
            "hidden_states": pixels(g),
            "timestep": times(g, 2),
            "encoder_hidden_states": text(g),
            "encoder_attention_mask": padded(2, 6),
        },
    ),
    "ZImageTransformer2DModel": Entry(
        {"in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 2, "n_heads": 4, "n_kv_heads": 4}
        | {"cap_feat_dim": 12, "axes_dims": [4, 2, 2], "axes_lens": [128, 32, 32]},
        lambda g: dict(zip(("x", "cap_feats"), lists(g))) | {"t": times(g, 2)},
    ),
    "Krea2Transformer2DModel": Entry(
        SMALL
        | {"in_channels": 4, "num_key_value_heads": 2, "intermediate_size": 32, "timestep_embed_dim": 8}
        | {"text_hidden_dim": 12, "num_text_layers": 3, "text_num_attention_heads": 2, "text_num_key_value_heads": 1}
        | {"text_intermediate_size": 16, "axes_dims_rope": AXES},
        lambda g: {
            "hidden_states": normal(g, 2, 16, 4),
            "encoder_hidden_states": normal(g, 2, 6, 3, 12),
            "timestep": times(g, 2),
            "position_ids": torch.cat((torch.zeros(6, 3), grid(1, 4, 4))),
            "encoder_attention_mask": padded(2, 6),
        },
    ),
    "OmniGenTransformer2DModel": Entry(
        {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 32}
        | {"num_layers": 2, "pad_token_id": 0, "vocab_size": 50, "in_channels": 4, "time_step_dim": 8}
        | {"rope_scaling": {"long_factor": [1, 2, 3, 4], "short_factor": [1, 2, 3, 4]}, "pos_embed_max_size": 8},
        lambda g: {
            "hidden_states": pixels(g),
            "timestep": times(g, 2),
            "input_ids": indices(g, 50, 2, 20),
            "input_img_latents": [normal(g, 1, 4, 8, 8)],
            "input_image_sizes": {0: [[0, 16]]},
            "attention_mask": torch.ones(2, 37, 37),
            "position_ids": torch.arange(37).expand(2, -1),
        },
    ),
}
