"""Video transformers: separate self- and cross-attention, or joint attention over text and frames."""

import torch

from .entry import Entry, grid, normal, padded, steps, text, times

# Four heads of width 8 (12 where three rotary axes want 4 columns each); two frames of 4x4 patches: 32 tokens.
SMALL = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2}
LATENT = {"in_channels": 4, "out_channels": 4}
COGVIDEO = (
    SMALL
    | {"in_channels": 4, "out_channels": 4, "time_embed_dim": 8, "text_embed_dim": 12}
    | {
        "sample_width": 8,
        "sample_height": 8,
        "sample_frames": 5,
        "patch_size": 2,
        "max_text_seq_length": 6,
    }
)
HUNYUAN = SMALL | LATENT | {"num_refiner_layers": 2, "text_embed_dim": 12, "rope_axes_dim": (4, 2, 2)}


def frames(g, channels=4):
    """Two latents [b, c, f, h, w] of two 8x8 frames."""
    return normal(g, 2, channels, 2, 8, 8)


def video(g):
    return {"hidden_states": frames(g), "encoder_hidden_states": text(g), "timestep": steps(g, 2)}


def frames_first(g):
    """The same, as [b, f, c, h, w]."""
    inputs = video(g)
    return inputs | {"hidden_states": inputs["hidden_states"].transpose(1, 2)}


def hunyuan(g):
    return video(g) | {"encoder_attention_mask": padded(2, 6), "timestep": steps(g, 2).float()}


def rotary_axes():
    """Allegro's rotary embedding: cosine and sine of every axis, and for every token its index on each axis."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    *freqs, _, _, _ = get_3d_rotary_pos_embed_allegro(12, [(0, 0), (4, 4)], (4, 4), 2)
    index = grid(2, 4, 4).long()
    return freqs, [index[None, :, axis] for axis in range(3)]


ENTRIES = {
    "LatteTransformer3DModel": Entry(
        SMALL
        | LATENT
        | {"sample_size": 8, "patch_size": 2, "caption_channels": 12, "cross_attention_dim": 32, "video_length": 2}
        | {"num_embeds_ada_norm": 1000, "norm_type": "ada_norm_single", "norm_elementwise_affine": False},
        video,
    ),
    "CogVideoXTransformer3DModel": Entry(COGVIDEO, frames_first),
    "ConsisIDTransformer3DModel": Entry(
        COGVIDEO
        | {"is_train_face": True, "cross_attn_interval": 1, "cross_attn_dim_head": 8, "cross_attn_num_heads": 4}
        | {"LFE_id_dim": 6, "LFE_vit_dim": 6, "LFE_depth": 2, "LFE_dim_head": 8, "LFE_num_heads": 4}
        | {"LFE_num_id_token": 2, "LFE_num_querie": 4, "LFE_output_dim": 21, "LFE_ff_mult": 1, "LFE_num_scale": 2},
        lambda g: (
            frames_first(g) | {"id_cond": normal(g, 2, 6), "id_vit_hidden": [normal(g, 2, 5, 6) for _ in range(2)]}
        ),
    ),
    "AllegroTransformer3DModel": Entry(
        SMALL
        | LATENT
        | {"attention_head_dim": 12, "cross_attention_dim": 48, "caption_channels": 12}
        | {"sample_width": 8, "sample_height": 8, "sample_frames": 2},
        lambda g: (
            video(g)
            | {"attention_mask": torch.ones(2, 2, 8, 8), "encoder_attention_mask": padded(2, 6).long()}
            | {"image_rotary_emb": rotary_axes()}
        ),
    ),
    "MochiTransformer3DModel": Entry(
        SMALL
        | {"in_channels": 4, "pooled_projection_dim": 16, "text_embed_dim": 16, "time_embed_dim": 8}
        | {"max_sequence_length": 6, "num_layers": 3},
        lambda g: video(g) | {"encoder_hidden_states": text(g, 16), "encoder_attention_mask": padded(2, 6)},
    ),
    "LTXVideoTransformer3DModel": Entry(
        SMALL | LATENT | {"cross_attention_dim": 32, "caption_channels": 12},
        lambda g: {
            "hidden_states": normal(g, 2, 32, 4),
            "encoder_hidden_states": text(g),
            "timestep": steps(g, 2),
            "encoder_attention_mask": padded(2, 6),
            "num_frames": 2,
            "height": 4,
            "width": 4,
        },
    ),
    "EasyAnimateTransformer3DModel": Entry(
        SMALL
        | LATENT
        | {"mmdit_layers": 1, "patch_size": 2, "text_embed_dim": 12, "time_embed_dim": 8}
        | {"attention_head_dim": 16, "sample_width": 8, "sample_height": 8},
        video,
    ),
    "CosmosTransformer3DModel": Entry(
        SMALL
        | LATENT
        | {"attention_head_dim": 12, "mlp_ratio": 2, "text_embed_dim": 12, "adaln_lora_dim": 4, "max_size": (4, 8, 8)},
        lambda g: (
            video(g)
            | {"attention_mask": padded(2, 6), "fps": 30, "padding_mask": torch.zeros(1, 1, 8, 8)}
            | {"timestep": times(g, 2)}
        ),
    ),
    "SanaVideoTransformer3DModel": Entry(
        SMALL
        | LATENT
        | {"attention_head_dim": 12, "num_cross_attention_heads": 4, "cross_attention_head_dim": 12}
        | {"cross_attention_dim": 48, "caption_channels": 12, "sample_size": 8, "rope_max_seq_len": 16},
        lambda g: video(g) | {"encoder_attention_mask": padded(2, 6)},
    ),
    "HunyuanVideoTransformer3DModel": Entry(
        HUNYUAN | {"num_single_layers": 2, "pooled_projection_dim": 10},
        lambda g: hunyuan(g) | {"pooled_projections": normal(g, 2, 10), "guidance": steps(g, 2).float()},
    ),
    "HunyuanVideoFramepackTransformer3DModel": Entry(
        HUNYUAN
        | {"num_single_layers": 2, "pooled_projection_dim": 10, "has_image_proj": True, "image_proj_dim": 14}
        | {"has_clean_x_embedder": True},
        lambda g: (
            hunyuan(g)
            | {
                "pooled_projections": normal(g, 2, 10),
                "guidance": steps(g, 2).float(),
                "image_embeds": normal(g, 2, 3, 14),
            }
            | {"indices_latents": torch.arange(7.0, 9.0), "indices_latents_clean": torch.tensor([6.0])}
            | {"latents_clean": normal(g, 2, 4, 1, 8, 8), "latents_history_2x": normal(g, 2, 4, 2, 8, 8)}
            | {"indices_latents_history_2x": torch.tensor([4.0, 5.0]), "latents_history_4x": normal(g, 2, 4, 4, 8, 8)}
            | {"indices_latents_history_4x": torch.arange(4.0)}
        ),
    ),
    "HunyuanVideo15Transformer3DModel": Entry(
        HUNYUAN | {"text_embed_2_dim": 10, "image_embed_dim": 14, "target_size": 8, "patch_size": 2},
        lambda g: (
            hunyuan(g)
            | {"encoder_hidden_states_2": text(g, 10, 4), "encoder_attention_mask_2": padded(2, 4)}
            | {"image_embeds": normal(g, 2, 3, 14)}
        ),
    ),
    "MotifVideoTransformer3DModel": Entry(
        SMALL
        | {"in_channels": 9, "out_channels": 4, "num_single_layers": 2, "num_decoder_layers": 1, "text_embed_dim": 12}
        | {"num_layers": 2, "rope_axes_dim": (4, 2, 2), "image_embed_dim": 14}
        | {"enable_text_cross_attention_dual": True, "enable_text_cross_attention_single": True},
        lambda g: (
            video(g)
            | {
                "hidden_states": frames(g, 9),
                "encoder_attention_mask": padded(2, 6),
                "image_embeds": normal(g, 2, 3, 14),
            }
        ),
    ),
    "Kandinsky5Transformer3DModel": Entry(
        {"in_text_dim": 12, "in_text_dim2": 10, "time_dim": 16, "model_dim": 32, "ff_dim": 32, "num_text_blocks": 2}
        | {"num_visual_blocks": 2, "axes_dims": (4, 2, 2)},
        lambda g: {
            "hidden_states": normal(g, 2, 2, 8, 8, 4),
            "encoder_hidden_states": text(g),
            "timestep": steps(g, 2).float(),
            "pooled_projections": normal(g, 2, 10),
            "visual_rope_pos": [torch.arange(n) for n in (2, 4, 4)],
            "text_rope_pos": torch.arange(6),
        },
    ),
    "Kandinsky6Transformer3DModel": Entry(
        {"in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 12, "in_text_dim2": 10, "time_dim": 16}
        | {"model_dim": 32, "ff_dim": 32, "num_text_blocks": 2, "num_visual_blocks": 2, "axes_dims": (4, 2, 2)}
        | {"visual_cond": False, "in_audio_dim": 6, "out_audio_dim": 6},
        lambda g: {
            "hidden_states": normal(g, 2, 2, 8, 8, 4),
            "encoder_hidden_states": text(g),
            "pooled_projections": normal(g, 2, 10),
            "timestep": steps(g, 2).float(),
            "audio_hidden_states": normal(g, 2, 7, 6),
            "encoder_attention_mask": padded(2, 6),
        },
    ),
    "Kandinsky6SRTransformer3DModel": Entry(
        {"in_visual_dim": 4, "out_visual_dim": 4, "time_dim": 16, "model_dim": 32, "ff_dim": 32}
        | {"num_visual_blocks": 2, "axes_dims": (4, 2, 2)},
        lambda g: {"hidden_states": normal(g, 2, 2, 16, 16, 9), "timestep": steps(g, 2).float()},
    ),
    "JoyImageEditTransformer3DModel": Entry(
        {"in_channels": 4, "hidden_size": 32, "num_attention_heads": 4, "text_dim": 12, "num_layers": 2}
        | {"rope_dim_list": [4, 2, 2]},
        lambda g: video(g) | {"timestep": times(g, 2)},
    ),
    "JoyImageEditPlusTransformer3DModel": Entry(
        {"in_channels": 4, "hidden_size": 32, "num_attention_heads": 4, "text_dim": 12, "num_layers": 2}
        | {"rope_dim_list": [4, 2, 2]},
        lambda g: {
            "hidden_states": normal(g, 2, 20, 4, 1, 2, 2),
            "encoder_hidden_states": text(g),
            "timestep": times(g, 2),
            "encoder_hidden_states_mask": padded(2, 6),
            "shape_list": [[(1, 4, 4), (1, 2, 2)], [(1, 4, 4)]],
        },
    ),
    "SanaWMTransformer3DModel": Entry(
        {"in_channels": 4, "num_layers": 4, "hidden_size": 48, "num_attention_heads": 4, "linear_head_dim": 12}
        | {
            "softmax_every_n": 2,
            "caption_channels": 12,
            "chunk_plucker_channels": 6,
            "chunk_plucker_post_attn_blocks": 4,
        }
        | {"image_size": 64},
        lambda g: {
            "hidden_states": normal(g, 2, 4, 2, 4, 4),
            "timestep": steps(g, 2, 1, 2),
            "encoder_hidden_states": normal(g, 2, 1, 6, 12),
            "encoder_attention_mask": padded(2, 6),
        },
    ),
}
