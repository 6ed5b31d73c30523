"""Tiny pipelines of FLUX, and of those whose transformers are written like its own."""

import transformers
from tiny_text_encoders import CHAT, clip, mistral, pixtral_processor, qwen3, qwen_vl, t5, tokenizer, vocabulary_size

from .parts import flow, kl

SIZES = {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 4, "attention_head_dim": 8}


def flux(guidance=True):
    from diffusers import FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        in_channels=16,
        **SIZES,
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
        **SIZES,
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


def longcat_image():
    from diffusers import LongCatImagePipeline, LongCatImageTransformer2DModel
    from transformers import Qwen2TokenizerFast, Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    transformer = LongCatImageTransformer2DModel(
        in_channels=64,
        **SIZES,
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
        **SIZES,
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
        **SIZES,
        joint_attention_dim=32,
        axes_dims_rope=[4, 2, 2],
    )
    scheduler = flow(shift=3.0, use_dynamic_shifting=True)
    return BriaPipeline(
        transformer=transformer, scheduler=scheduler, vae=kl(), text_encoder=t5(32), tokenizer=tokenizer()
    )


def flux2():
    """Of the kind of klein, whose text encoder gives layers 9, 18 and 27."""
    from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    transformer = Flux2Transformer2DModel(
        in_channels=16,
        **SIZES,
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
