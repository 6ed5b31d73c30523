"""Tiny pipelines whose images and text share an attention, each in a way of its own."""

from tiny_text_encoders import clip, gemma, llama, qwen3, qwen_vl, t5, tokenizer, umt5

from .parts import flow, kl


def sd3():
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=4,
        attention_head_dim=8,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=24,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=flow(shift=3.0),
        vae=kl(),
        text_encoder=clip(16, 8),
        text_encoder_2=clip(16, 16),
        text_encoder_3=t5(32),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        tokenizer_3=tokenizer(),
    )


def qwen_image():
    from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        num_attention_heads=4,
        attention_head_dim=8,
        joint_attention_dim=32,
        axes_dims_rope=(4, 2, 2),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.0, 2.0, 0.5, 1.5],
    )
    return QwenImagePipeline(
        transformer=transformer,
        scheduler=flow(use_dynamic_shifting=True, shift_terminal=0.02),
        vae=vae,
        text_encoder=qwen_vl(32),
        tokenizer=tokenizer(1100),
    )


def z_image():
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=32,
        axes_dims=[4, 2, 2],
        axes_lens=[1024, 64, 64],
    )
    return ZImagePipeline(
        transformer=transformer, scheduler=flow(shift=3.0), vae=kl(), text_encoder=qwen3(32), tokenizer=tokenizer()
    )


def lumina2():
    from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 64, 64),
        cap_feat_dim=32,
    )
    return Lumina2Pipeline(
        transformer=transformer, scheduler=flow(shift=6.0), vae=kl(), text_encoder=gemma(32), tokenizer=tokenizer()
    )


def aura_flow():
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel

    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=2,
        num_attention_heads=4,
        attention_head_dim=8,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pos_embed_max_size=256,
    )
    return AuraFlowPipeline(
        transformer=transformer,
        scheduler=flow(shift=1.73),
        vae=kl(shift=None),
        text_encoder=umt5(),
        tokenizer=tokenizer(),
    )


def hidream():
    from diffusers import HiDreamImagePipeline, HiDreamImageTransformer2DModel

    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        num_attention_heads=4,
        attention_head_dim=8,
        caption_channels=[32, 16],
        text_emb_dim=24,
        num_routed_experts=3,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(16, 12),
        llama_layers=[0, 1, 0, 1],
    )
    return HiDreamImagePipeline(
        transformer=transformer,
        scheduler=flow(shift=3.0),
        vae=kl(),
        text_encoder=clip(16, 8, 128),
        text_encoder_2=clip(16, 16, 128),
        text_encoder_3=t5(32),
        text_encoder_4=llama(16),
        tokenizer=tokenizer(128),
        tokenizer_2=tokenizer(128),
        tokenizer_3=tokenizer(128),
        tokenizer_4=tokenizer(128),
    )


def hunyuan_image():
    from diffusers import (
        AdaptiveProjectedMixGuidance,
        AutoencoderKLHunyuanImage,
        HunyuanImagePipeline,
        HunyuanImageTransformer2DModel,
    )

    transformer = HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=(1, 1),
        text_embed_dim=32,
        text_embed_2_dim=16,
        rope_axes_dim=(4, 4),
    )
    vae = AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=2,
        sample_size=16,
        scaling_factor=0.75,
    )
    return HunyuanImagePipeline(
        transformer=transformer,
        scheduler=flow(shift=5.0),
        vae=vae,
        text_encoder=qwen_vl(32),
        tokenizer=tokenizer(1100),
        text_encoder_2=t5(16),
        tokenizer_2=tokenizer(128),
        guider=AdaptiveProjectedMixGuidance(),
        ocr_guider=AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=0),
    )


def prx():
    """With T5 in the place of T5Gemma."""
    from diffusers import PRXPipeline, PRXTransformer2DModel

    transformer = PRXTransformer2DModel(
        in_channels=4,
        patch_size=2,
        context_in_dim=32,
        hidden_size=32,
        num_heads=4,
        depth=2,
        axes_dim=[4, 4],
        resolution_embeds=True,
    )
    words = tokenizer(64, "left")
    return PRXPipeline(
        transformer=transformer, scheduler=flow(shift=3.0), vae=kl(), text_encoder=t5(32), tokenizer=words
    )
