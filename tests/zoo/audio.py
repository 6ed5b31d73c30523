"""Transformers of sound, of sound beside video, and of other sequences."""

import torch

from .entry import Entry, indices, normal, padded, text, times


def mask(length=6):
    return padded(2, length)


def rotary(g, *shape):
    """A cosine and a sine of random angles; the second half of the columns repeats the first."""
    angle = normal(g, *shape).repeat_interleave(2, dim=-1)
    return angle.cos(), angle.sin()


LTX2 = (
    {"in_channels": 4, "out_channels": 4, "num_attention_heads": 4, "attention_head_dim": 12, "num_layers": 2}
    | {"cross_attention_dim": 48, "audio_in_channels": 4, "audio_out_channels": 4, "caption_channels": 12}
    | {"audio_num_attention_heads": 4, "audio_attention_head_dim": 8, "audio_cross_attention_dim": 32}
)

ENTRIES = {
    "AceStepTransformer1DModel": Entry(
        {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"num_key_value_heads": 2, "head_dim": 8, "in_channels": 12, "audio_acoustic_hidden_dim": 4}
        | {"sliding_window": 4, "encoder_hidden_size": 12},
        lambda g: {
            "hidden_states": normal(g, 2, 24, 4),
            "timestep": times(g, 2),
            "timestep_r": times(g, 2),
            "encoder_hidden_states": text(g),
            "context_latents": normal(g, 2, 24, 8),
        },
    ),
    "StableAudioDiTModel": Entry(
        {"sample_size": 16, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8}
        | {"num_attention_heads": 4, "num_key_value_attention_heads": 2, "cross_attention_dim": 16}
        | {"time_proj_dim": 8, "global_states_input_dim": 10, "cross_attention_input_dim": 12},
        lambda g: {
            "hidden_states": normal(g, 2, 4, 16),
            "timestep": times(g, 2),
            "encoder_hidden_states": text(g),
            "global_hidden_states": normal(g, 2, 1, 10),
            "rotary_embedding": rotary(g, 17, 2),
        },
    ),
    "StableAudio3DiTModel": Entry(
        {"io_channels": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "cond_token_dim": 12, "global_cond_dim": 10}
        | {"local_add_cond_dim": 5, "timestep_features_dim": 16, "ff_mult": 2, "num_memory_tokens": 3},
        lambda g: {
            "hidden_states": normal(g, 2, 4, 16),
            "timestep": times(g, 2),
            "encoder_hidden_states": text(g),
            "global_hidden_states": normal(g, 2, 10),
            "encoder_attention_mask": mask(),
            "local_add_cond": normal(g, 2, 5, 16),
        },
    ),
    "LongCatAudioDiTTransformer": Entry(
        {"dit_dim": 32, "dit_depth": 2, "dit_heads": 4, "dit_text_dim": 12, "latent_dim": 4, "ff_mult": 2.0},
        lambda g: {
            "hidden_states": normal(g, 2, 16, 4),
            "encoder_hidden_states": text(g),
            "encoder_attention_mask": mask(),
            "timestep": times(g, 2),
            "attention_mask": mask(16),
            "latent_cond": normal(g, 2, 16, 4),
        },
    ),
    "MiniMaxMusic3Transformer1DModel": Entry(
        {"in_channels": 4, "condition_dim": 12, "num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 8}
        | {"ff_inner_dim": 32, "rotary_dim": 4, "fourier_embedding_dim": 8},
        lambda g: {
            "hidden_states": normal(g, 2, 4, 16),
            "timestep": times(g, 2),
            "encoder_hidden_states": text(g, length=16),
        },
    ),
    "MiniMaxMusic3RVQDepthDecoder": Entry(
        {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
        | {"audio_vocab_size": 10, "num_codebooks": 4},
        lambda g: {"inputs_embeds": normal(g, 2, 8, 32)},
    ),
    "T5FilmDecoder": Entry(
        {"input_dims": 4, "targets_length": 16, "d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 32},
        lambda g: {
            "encodings_and_masks": [(normal(g, 2, 6, 32), mask().float())],
            "decoder_input_tokens": normal(g, 2, 16, 4),
            "decoder_noise_time": times(g, 2),
        },
    ),
    "TransformerTemporalModel": Entry(
        {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2, "in_channels": 8, "norm_num_groups": 4},
        lambda g: {"hidden_states": normal(g, 16, 8, 2, 2), "num_frames": 8},
    ),
    "LTX2VideoTransformer3DModel": Entry(
        LTX2,
        lambda g: {
            "hidden_states": normal(g, 2, 32, 4),
            "audio_hidden_states": normal(g, 2, 7, 4),
            "encoder_hidden_states": text(g),
            "audio_encoder_hidden_states": text(g),
            "timestep": 1000 * times(g, 2),
            "encoder_attention_mask": mask(),
            "audio_encoder_attention_mask": mask(),
            "num_frames": 2,
            "height": 4,
            "width": 4,
            "audio_num_frames": 7,
        },
    ),
    "SanaWMLTX2RefinerTransformer3DModel": Entry(
        LTX2,
        lambda g: {
            "hidden_states": normal(g, 2, 32, 4),
            "encoder_hidden_states": text(g),
            "timestep": 1000 * times(g, 2, 32),
            "video_rotary_emb": rotary(g, 2, 32, 24),
            "encoder_attention_mask": mask(),
        },
    ),
    "RFD4ProteinaTransformer": Entry(
        {"nlayers": 2, "token_dim": 32, "nheads": 4, "dim_cond": 16, "pair_repr_dim": 12, "latent_dim": 4}
        | {"token_type_emb_dim": 8, "t_emb_dim": 16, "xt_pair_dist_dim": 6, "tri_mult_c": 8}
        | {"num_sequence_classes": 5, "feats_seq": ("xt_bb_ca", "xt_local_latents", "token_type")}
        | {"feats_cond_seq": ("time_emb_bb_ca", "time_emb_local_latents")}
        | {"feats_pair_repr": ("xt_bb_ca_pair_dists",)},
        lambda g: {
            "bb_ca": normal(g, 2, 16, 3),
            "local_latents": normal(g, 2, 16, 4),
            "bb_ca_time": times(g, 2),
            "local_latents_time": times(g, 2),
            "padding_mask": mask(16),
            "token_type": indices(g, 7, 2, 16),
            "conditioning": {
                "is_in_context_conditioning": torch.zeros(2, 16, dtype=torch.bool),
                "supports_local_latent": torch.ones(2, 16, dtype=torch.bool),
            },
        },
    ),
}
