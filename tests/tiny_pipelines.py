"""Tiny random text-to-image pipelines of every kind that has an adapter: weights, tokenizers and all, of our making.

folder = write_pipeline("sd3", tmp_path / "pipeline")
"""

import functools
from pathlib import Path

import pytest
import torch
import transformers
from tiny_text_encoders import (
    CHAT,
    clip,
    gemma,
    llama,
    mistral,
    pixtral_processor,
    qwen3,
    qwen_vl,
    t5,
    tokenizer,
    vocabulary_size,
)


def kl(channels=4, shift=0.1, depth=2, **options):
    """An autoencoder of a factor of two, or of a higher power of it."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        block_out_channels=(8,) * depth,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=channels,
        scaling_factor=0.7,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **options,
    )


def flow(**options):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


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


def flux(guidance=True):
    from diffusers import FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        num_attention_heads=4,
        attention_head_dim=8,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 2, 2),
    )
    return FluxPipeline(
        transformer=transformer,
        scheduler=flow(shift=3.0, use_dynamic_shifting=True),
        vae=kl(),
        text_encoder=clip(16),
        text_encoder_2=t5(32),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
    )


def chroma():
    from diffusers import ChromaPipeline, ChromaTransformer2DModel

    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        num_attention_heads=4,
        attention_head_dim=8,
        joint_attention_dim=32,
        axes_dims_rope=(4, 2, 2),
        approximator_num_channels=16,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    scheduler = flow(shift=3.0, use_dynamic_shifting=True)
    return ChromaPipeline(
        transformer=transformer, scheduler=scheduler, vae=kl(), text_encoder=t5(32), tokenizer=tokenizer()
    )


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


def longcat_image():
    from diffusers import LongCatImagePipeline, LongCatImageTransformer2DModel
    from transformers import Qwen2TokenizerFast, Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    transformer = LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        num_attention_heads=4,
        attention_head_dim=8,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 2, 2],
    )
    words = tokenizer(600, ends=False)
    if transformers.__version__.startswith("4."):  # whose processor takes no other class
        words.__class__ = Qwen2TokenizerFast
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(), words, Qwen2VLVideoProcessor(), chat_template=words.chat_template
    )
    return LongCatImagePipeline(
        transformer=transformer,
        scheduler=flow(shift=3.0, use_dynamic_shifting=True),
        vae=kl(16),
        text_encoder=qwen_vl(32),
        tokenizer=words,
        text_processor=processor,
    )


def ovis_image():
    """Whose template has as many tokens before the prompt as the pipeline cuts off."""
    from diffusers import OvisImagePipeline, OvisImageTransformer2DModel

    transformer = OvisImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=2,
        num_attention_heads=4,
        attention_head_dim=8,
        joint_attention_dim=32,
        axes_dims_rope=(4, 2, 2),
    )
    words = tokenizer(600, ends=False)
    words.chat_template = "<s>" + CHAT
    scheduler = flow(shift=3.0, use_dynamic_shifting=True)
    return OvisImagePipeline(
        transformer=transformer, scheduler=scheduler, vae=kl(), text_encoder=qwen3(32), tokenizer=words
    )


def bria():
    from diffusers import BriaPipeline, BriaTransformer2DModel

    transformer = BriaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        num_attention_heads=4,
        attention_head_dim=8,
        joint_attention_dim=32,
        axes_dims_rope=[4, 2, 2],
    )
    scheduler = flow(shift=3.0, use_dynamic_shifting=True)
    return BriaPipeline(
        transformer=transformer, scheduler=scheduler, vae=kl(), text_encoder=t5(32), tokenizer=tokenizer()
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


def aura_flow():
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel
    from transformers import UMT5Config, UMT5EncoderModel

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
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    encoder = UMT5EncoderModel(UMT5Config(vocab_size=vocabulary_size(), pad_token_id=0, eos_token_id=1, **sizes))
    return AuraFlowPipeline(
        transformer=transformer,
        scheduler=flow(shift=1.73),
        vae=kl(shift=None),
        text_encoder=encoder,
        tokenizer=tokenizer(),
    )


def flux2():
    """Of the kind of klein, whose text encoder gives layers 9, 18 and 27."""
    from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        num_attention_heads=4,
        attention_head_dim=8,
        joint_attention_dim=48,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=False,
    )
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 28, "num_attention_heads": 2}
    encoder = Qwen3ForCausalLM(
        Qwen3Config(vocab_size=vocabulary_size(), num_key_value_heads=1, head_dim=8, pad_token_id=0, **sizes)
    )
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKLFlux2(
        **blocks, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4
    )
    return Flux2KleinPipeline(
        transformer=transformer,
        scheduler=flow(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer(600),
    )


def flux2_dev():
    """Whose tokenizer is a processor of images and text, and whose text encoder gives layers 10, 20 and 30."""
    from diffusers import Flux2Pipeline

    klein = flux2()
    config = {**klein.transformer.config, "guidance_embeds": True}
    transformer = type(klein.transformer)(**{key: value for key, value in config.items() if not key.startswith("_")})
    return Flux2Pipeline(
        transformer=transformer,
        scheduler=klein.scheduler,
        vae=klein.vae,
        text_encoder=mistral(16),
        tokenizer=pixtral_processor(700),
    )


def wan():
    from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

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
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    encoder = UMT5EncoderModel(UMT5Config(vocab_size=vocabulary_size(), pad_token_id=0, eos_token_id=1, **sizes))
    return WanPipeline(
        transformer=transformer, scheduler=flow(shift=3.0), vae=vae, text_encoder=encoder, tokenizer=tokenizer(600)
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


def here(make):
    """A maker of pipelines that skips a test where this diffusers has not its classes."""

    @functools.wraps(make)
    def made(*args, **kwargs):
        try:
            return make(*args, **kwargs)
        except ImportError as error:
            pytest.skip(f"this diffusers is too old ({error})")

    return made


KINDS = {
    "sd3": sd3,
    "flux": flux,
    "chroma": chroma,
    "pixart": pixart,
    "qwen_image": qwen_image,
    "longcat_image": longcat_image,
    "ovis_image": ovis_image,
    "bria": bria,
    "z_image": z_image,
    "lumina2": lumina2,
    "sana": sana,
    "aura_flow": aura_flow,
    "flux2": flux2,
    "wan": wan,
    "hunyuan_dit": hunyuan_dit,
    "hidream": hidream,
    "hunyuan_image": hunyuan_image,
    "prx": prx,
}
KINDS = {name: here(make) for name, make in KINDS.items()}
"""By the name of the adapter."""
LATER = ("bria", "chroma", "hidream", "hunyuan_image", "longcat_image", "ovis_image", "prx")
"""Of these what is alike for every kind is tried by the slow tests."""
WITH_SLOW = [pytest.param(kind, marks=pytest.mark.slow) if kind in LATER else kind for kind in KINDS]
HALF = {
    "hidream": {"num_layers": 1, "num_single_layers": 1},
    "hunyuan_image": {"num_layers": 1, "num_single_layers": 1},
    "prx": {"depth": 1},
}
"""Of some, by kind: keys of the transformer's config for every second block."""
LIKE_FLUX = tuple(kind for kind in LATER if kind not in HALF)
"""Those of them whose config and call are FLUX's; the others have tests of their own in tests/diffusion/adapters."""
OTHERS = {"flux2_dev": here(flux2_dev)}
"""Other pipelines of the same adapters."""


def write_pipeline(kind: str, folder: Path, seed: int = 0) -> Path:
    """A pipeline with random weights in diffusers format."""
    torch.manual_seed(seed)
    pipeline = {**KINDS, **OTHERS}[kind]()
    for p in pipeline.transformer.parameters():
        torch.nn.init.normal_(p, std=0.1)
    pipeline.save_pretrained(folder)
    return folder


def write_images(folder: Path, captions: dict[str, str | None], side: int = 16) -> Path:
    """Images of noise with captions beside them in text files; None for no file."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True)
    for number, (name, caption) in enumerate(captions.items()):
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
        if caption is not None:
            (folder / f"{name}.txt").write_text(caption)
    return folder
