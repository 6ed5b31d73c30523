"""Transformers of one packed sequence: text, images and sound lie in it by position lists and masks."""

import torch

from .entry import Entry, grid, indices, normal, padded, times

SMALL = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2}


def ideogram(g):
    """Six text tokens, then 16 image tokens; the text of the second sample is padded by one."""
    text = torch.arange(22) < 6
    segments = torch.ones(2, 22, dtype=torch.long)
    indicator = torch.where(text, 3, 2).repeat(2, 1)
    segments[1, 0] = indicator[1, 0] = -1
    place = torch.where(text[:, None], torch.arange(22)[:, None], 0).expand(22, 3).clone()
    place[6:] = grid(1, 4, 4).long() + 65536
    return {
        "hidden_states": normal(g, 2, 22, 4) * ~text[:, None],
        "encoder_hidden_states": normal(g, 2, 22, 12) * text[:, None],
        "timestep": times(g, 2),
        "position_ids": place.expand(2, -1, -1),
        "segment_ids": segments,
        "indicator": indicator,
    }


def minimax(g):
    """Four text tokens, six of sound and eight of video, the sound at a time of its own."""
    tags = torch.tensor([1] * 4 + [2] * 6 + [0] * 8)
    place = torch.zeros(18, 3)
    place[:, 0] = torch.arange(18)
    place[10:, 1:] = grid(1, 2, 4)[:, 1:]
    return {
        "hidden_states": normal(g, 2, 8, 16),
        "audio_hidden_states": normal(g, 2, 6, 6),
        "encoder_hidden_states": normal(g, 2, 4, 12),
        "timestep": times(g, 2),
        "timestep_indices": (tags == 2).long(),
        "token_tags": tags,
        "position_ids": place,
        "video_indices": torch.arange(10, 18),
        "audio_indices": torch.arange(4, 10),
        "text_indices": torch.arange(4),
    }


def cosmos(g):
    """Five text tokens that see only each other, then 16 tokens of one frame that see all."""
    image = torch.arange(5, 21)
    place = torch.arange(21).repeat(3, 1)
    place[:, 5:] = grid(1, 4, 4).T.long() + 5
    return {
        "input_ids": indices(g, 32, 5),
        "text_indexes": torch.arange(5),
        "position_ids": place,
        "und_len": 5,
        "sequence_length": 21,
        "vision_tokens": [normal(g, 1, 4, 1, 4, 4)],
        "vision_token_shapes": [(1, 4, 4)],
        "vision_sequence_indexes": image,
        "vision_mse_loss_indexes": image,
        "vision_timesteps": 1000 * times(g, 1).expand(16),
        "vision_noisy_frame_indexes": [torch.tensor([0])],
    }


def qwen(g):
    """Six text tokens, a condition image of 4x4 tokens in four slots of the text, two more words, the target image."""
    slots = torch.zeros(2, 16, dtype=torch.bool)
    slots[:, 6:10] = slots[:, 12:] = True
    return {
        "hidden_states": normal(g, 2, 32, 4),
        "encoder_hidden_states": normal(g, 2, 12, 12),
        "timestep": times(g, 2),
        "img_shapes": [[(1, 4, 4), (1, 4, 4)]] * 2,
        "img_mask": slots,
        "encoder_hidden_states_mask": padded(2, 12),
    }


ENTRIES = {
    "Ideogram4Transformer2DModel": Entry(
        SMALL
        | {"in_channels": 4, "intermediate_size": 32, "adaln_dim": 16, "llm_features_dim": 12}
        | {"mrope_section": (2, 1, 1)},
        ideogram,
    ),
    "MiniMaxH3Transformer3DModel": Entry(
        SMALL
        | {"attention_head_dim": 16, "hidden_size": 32, "num_refiner_layers": 2, "ffn_dim": 32}
        | {"in_channels": 4, "audio_in_channels": 6, "text_dim": 12, "freq_dim": 8, "time_embed_hidden_dim": 24}
        | {"time_embed_dim": 16, "rope_freq_dim": 2},
        minimax,
    ),
    "Cosmos3OmniTransformer": Entry(
        {"head_dim": 8, "hidden_size": 32, "intermediate_size": 32, "latent_channel": 4, "latent_patch_size": 1}
        | {"num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "patch_latent_dim": 4}
        | {"rope_axes_dim": [2, 1, 1], "vocab_size": 32},
        cosmos,
    ),
    "QwenImage21Transformer2DModel": Entry(
        SMALL | {"in_channels": 4, "out_channels": 4, "context_in_dim": 12, "axes_dims_rope": (4, 2, 2)},
        qwen,
    ),
    "BriaFibo2Transformer2DModel": Entry(
        {"in_channels": 4, "dim": 32, "n_layers": 3, "n_refiner_layers": 2, "n_heads": 4, "cap_feat_dim": 12}
        | {"injection_layer_ids": (1,), "perceiver_num_layers": 2, "min_num_gist_tokens": 4}
        | {"max_num_gist_tokens": 8, "gist_step": 2, "gist_min_text_len": 2, "gist_max_text_len": 8}
        | {"axes_dims": (4, 2, 2), "axes_lens": (32, 16, 16)},
        lambda g: {
            "hidden_states": normal(g, 2, 4, 8, 8),
            "timestep": times(g, 2),
            "encoder_hidden_states": normal(g, 2, 2, 6, 12),
        },
    ),
}
