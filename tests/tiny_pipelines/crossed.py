"""Tiny pipelines whose images attend to the text by layers of cross-attention."""

from tiny_text_encoders import gemma, t5, tokenizer, umt5, vocabulary_size

from .parts import flow, kl


def pixart(cls="PixArtSigmaPipeline"):
    import diffusers

    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        caption_channels=32,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        interpolation_scale=1,
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    return getattr(diffusers, cls)(
        transformer=transformer, scheduler=scheduler, vae=kl(shift=None), text_encoder=t5(32), tokenizer=tokenizer()
    )


def sana():
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=4,
        attention_head_dim=8,
        num_cross_attention_heads=4,
        cross_attention_head_dim=8,
        cross_attention_dim=32,
        caption_channels=32,
        sample_size=8,
    )
    vae = AutoencoderDC(
        latent_channels=4,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.4,
    )
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=1
    )
    return SanaPipeline(
        transformer=transformer, scheduler=scheduler, vae=vae, text_encoder=gemma(32), tokenizer=tokenizer()
    )


def wan():
    from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel

    transformer = WanTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=64,
    )
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.0, 2.0, 0.5, 1.5],
        scale_factor_spatial=2,
        scale_factor_temporal=4,
    )
    return WanPipeline(
        transformer=transformer, scheduler=flow(shift=3.0), vae=vae, text_encoder=umt5(), tokenizer=tokenizer(600)
    )


def hunyuan_dit():
    """With the pipeline's own numbers of tokens and pixels of a latent's side, which it does not read anywhere."""
    from diffusers import DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline
    from transformers import BertConfig, BertModel

    transformer = HunyuanDiT2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=32,
        num_layers=2,
        mlp_ratio=2.0,
        cross_attention_dim=24,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
    )
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert = BertModel(BertConfig(vocab_size=vocabulary_size(), pad_token_id=0, max_position_embeddings=77, **sizes))
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.02}
    return HunyuanDiTPipeline(
        transformer=transformer,
        scheduler=DDPMScheduler(**betas, prediction_type="v_prediction"),
        vae=kl(shift=None, depth=4),
        text_encoder=bert,
        text_encoder_2=t5(32),
        tokenizer=tokenizer(77),
        tokenizer_2=tokenizer(256),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
