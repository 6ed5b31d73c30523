"""Wan and its descendants: video transformers whose self- and cross-attention share one class."""

import torch

from .entry import Entry, normal, text, times
from .video import LATENT, SMALL, frames, frames_first, video

# Four heads of width 12: three rotary axes of 4 columns.
WAN = SMALL | LATENT | {"attention_head_dim": 12, "text_dim": 12, "freq_dim": 16, "ffn_dim": 32, "rope_max_seq_len": 16}


def anyflow(g):
    """Every frame has its own time and its own target time."""
    return frames_first(g) | {"timestep": 1000 * times(g, 2, 2), "r_timestep": 1000 * times(g, 2, 2)}


def text_and_image(g):
    """What Wan's cross-attention splits at a length of text that is written into its code: 512."""
    return {"encoder_hidden_states": text(g, length=512), "encoder_hidden_states_image": normal(g, 2, 5, 14)}


def animate_2(g):
    """A batch of one, in lists: latents of two frames, and their condition."""
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    return {
        "hidden_states": [normal(g, 4, 2, 4, 4)],
        "timestep": times(g, 1),
        "encoder_hidden_states": [normal(g, 5, 12)],
        "condition_latents": [normal(g, 6, 2, 4, 4)],
        "encoder_hidden_states_image": normal(g, 1, 4, 1280),
        "kv_cache": WanAnimate2KVCache(2),
        "kv_cache_mode": "extract",
        "seq_len": 8,
        "offset_grid_sizes": torch.tensor([[2, 2, 2]]),
    }


ENTRIES = {
    "WanTransformer3DModel": Entry(
        WAN | {"image_dim": 14, "added_kv_proj_dim": 48},
        lambda g: video(g) | text_and_image(g),
    ),
    "ChronoEditTransformer3DModel": Entry(WAN, video),
    "SkyReelsV2Transformer3DModel": Entry(
        WAN | {"inject_sample_info": True},
        lambda g: video(g) | {"fps": [0, 1]},
    ),
    "WanVACETransformer3DModel": Entry(
        WAN | {"vace_layers": [0, 1], "vace_in_channels": 6},
        lambda g: video(g) | {"control_hidden_states": frames(g, 6)},
    ),
    "WanAnimateTransformer3DModel": Entry(
        WAN
        | {
            "in_channels": 12,
            "latent_channels": 4,
            "image_dim": 14,
            "added_kv_proj_dim": 48,
            "motion_encoder_size": 16,
            "motion_style_dim": 8,
        }
        | {"motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16}, "motion_dim": 4, "motion_encoder_dim": 16}
        | {"face_encoder_hidden_dim": 16, "face_encoder_num_heads": 4, "inject_face_latents_blocks": 1},
        lambda g: (
            video(g)
            | {"hidden_states": frames(g, 12), "pose_hidden_states": normal(g, 2, 4, 1, 8, 8)}
            | text_and_image(g)
            | {"face_pixel_values": normal(g, 2, 3, 1, 16, 16)}
        ),
    ),
    "WanAnimate2Transformer3DModel": Entry(
        {"text_len": 6, "in_dim": 10, "dim": 48, "ffn_dim": 32, "freq_dim": 16, "text_dim": 12, "out_dim": 4}
        | {"num_heads": 4, "num_layers": 2},
        animate_2,
    ),
    "AnyFlowTransformer3DModel": Entry(WAN, anyflow),
    "AnyFlowFARTransformer3DModel": Entry(WAN, lambda g: anyflow(g) | {"chunk_partition": [1, 1]}),
    "HeliosTransformer3DModel": Entry(
        {k: v for k, v in WAN.items() if k != "rope_max_seq_len"} | {"rope_dim": (4, 4, 4)},
        lambda g: (
            video(g)
            | {"indices_hidden_states": torch.arange(2.0).expand(2, -1) + 7}
            | {
                "indices_latents_history_short": torch.full((2, 1), 6.0),
                "latents_history_short": normal(g, 2, 4, 1, 8, 8),
            }
            | {"indices_latents_history_mid": torch.full((2, 2), 5.0), "latents_history_mid": normal(g, 2, 4, 2, 8, 8)}
            | {
                "indices_latents_history_long": torch.full((2, 4), 2.0),
                "latents_history_long": normal(g, 2, 4, 4, 8, 8),
            }
        ),
    ),
}
