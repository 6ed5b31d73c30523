"""Transformers that no adapter is for: the refusal, and that its reason is true."""

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
)
from tiny_pipelines import kl
from tiny_text_encoders import clip, qwen_vl, tokenizer, vocabulary_size
from widening import random

from dit_shd.core.errors import UserError
from dit_shd.diffusion.adapters import adapter_of


@pytest.mark.parametrize("name", ["CogView4Transformer2DModel", "Kandinsky5Transformer3DModel"])
def test_a_class_that_mixes_prompts_is_refused_with_the_reason(name):
    with pytest.raises(UserError, match=f"{name}: is not supported: its pipeline pads prompts"):
        adapter_of(name)


@torch.no_grad()
def test_why_cogview4_is_refused():
    """What its pipeline's transformer makes of a prompt changes with the other prompts of a batch."""
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel
    from transformers import GlmConfig, GlmModel

    torch.manual_seed(0)
    sizes = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "rope_axes_dim": (16, 16)}
    width = {"text_embed_dim": 32, "time_embed_dim": 16, "condition_dim": 16}
    transformer = CogView4Transformer2DModel(in_channels=4, out_channels=4, sample_size=8, **sizes, **width)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}
    depth = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32}
    encoder = GlmModel(GlmConfig(vocab_size=vocabulary_size(), **depth, **heads))
    parts = {"transformer": transformer, "text_encoder": encoder, "tokenizer": tokenizer(64, "left")}
    pipeline = CogView4Pipeline(vae=kl(), scheduler=FlowMatchEulerDiscreteScheduler(), **parts)
    long = "a nine with a zero and " * 5
    alone, both = (
        pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)[0][:1]
        for prompts in (["a nine"], ["a nine", long])
    )
    assert alone.shape[1] < both.shape[1]
    x, t, sizes_in = torch.randn(1, 4, 8, 8), torch.tensor([500.0]), [torch.tensor([[64.0, 64.0]])] * 3
    outputs = [transformer(x, text, t, *sizes_in, return_dict=False)[0] for text in (alone, both)]
    assert (outputs[0] - outputs[1]).abs().max() > 0.01 * outputs[0].std()


@torch.no_grad()
def test_why_kandinsky_5_is_refused():
    """Its text encoder and its transformer attend to padding, which is as long as the longest prompt of a batch."""
    from diffusers import Kandinsky5T2IPipeline, Kandinsky5Transformer3DModel

    torch.manual_seed(0)
    sizes = {"time_dim": 16, "patch_size": (1, 2, 2), "model_dim": 16, "ff_dim": 32, "axes_dims": (4, 2, 2)}
    depth = {"num_text_blocks": 1, "num_visual_blocks": 1, "in_text_dim": 32, "in_text_dim2": 16}
    transformer = random(Kandinsky5Transformer3DModel(**sizes, **depth), 0)
    parts = {"text_encoder": qwen_vl(32), "tokenizer": Texts(tokenizer(600)), "text_encoder_2": clip(16, length=77)}
    parts |= {"tokenizer_2": tokenizer(77), "transformer": transformer, "scheduler": FlowMatchEulerDiscreteScheduler()}
    pipeline = Kandinsky5T2IPipeline(vae=kl(), **parts)
    alone, both = (
        pipeline.encode_prompt(prompts) for prompts in (["a nine"], ["a nine", "a nine with a zero and " * 5])
    )
    assert alone[0].shape[1] < both[0].shape[1]
    x, places = torch.randn(1, 1, 4, 4, 4), [torch.arange(1), torch.arange(2), torch.arange(2)]
    outputs = [
        transformer(x, text[:1], torch.tensor([500.0]), pooled[:1], places, torch.arange(text.shape[1])).sample
        for text, pooled, _ in (alone, both)
    ]
    assert (outputs[0] - outputs[1]).abs().max() > 0.05 * outputs[0].std()


class Texts:
    """A tokenizer in the place of a processor of images and text, which it is given none of."""

    def __init__(self, words):
        self.words = words

    def __call__(self, text, images, videos, **options):
        assert images is None and videos is None
        return self.words(text, **options)
