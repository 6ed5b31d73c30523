"""A small pipeline of SD3's kind for captioned digits: an autoencoder, text encoders, an untrained transformer.

    python experiments/captioned_digits/pipeline.py IMAGES OUT

The autoencoder is trained here: it halves 56 x 56 pixels to 28 x 28 latents of four channels, 196 tokens of 2 x 2. The
text encoders (two of CLIP's kind, one of T5's) are random and frozen: fixed codes of the words that captions are made
of, in their context.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from PIL import Image
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from dit_shd.data.captioned_digits import NAMES

WORDS = [*NAMES, "a", "an", "two", "digits", ":", "and", "above", "at", "the", "left", "right", "top", "bottom"]
WORDS = list(dict.fromkeys([*WORDS, "thin", "thick", "slanted"]))
SPECIAL = ["<pad>", "</s>", "<unk>", "<s>"]
LENGTH = 12
"""Tokens of a caption, with the first and the last."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Words to numbers."""
    numbers = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    words = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|:"), "removed", invert=True)
    ends = [("<s>", numbers["<s>"]), ("</s>", numbers["</s>"])]
    words.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=LENGTH, padding_side="right", **names)


def clip(width: int) -> CLIPTextModelWithProjection:
    """A random text encoder whose embeddings are of the size of one."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"vocab_size": len(SPECIAL) + len(WORDS), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3}
    config = CLIPTextConfig(max_position_embeddings=LENGTH, projection_dim=width, **sizes, **ids)
    model = CLIPTextModelWithProjection(config)
    for name, p in model.named_parameters():
        if "token_embedding" in name or "position_embedding" in name:
            torch.nn.init.normal_(p)
        elif p.ndim == 2:
            torch.nn.init.normal_(p, std=p.shape[1] ** -0.5)
    return model


def autoencoder(images: np.ndarray, steps: int) -> AutoencoderKL:
    """Trained on images uint8 [n,56,56] for steps of 32; its latents have unit deviation after scaling."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=56,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    draw = np.random.default_rng(0)
    for step in range(steps):
        x = pixels(images[draw.integers(len(images), size=32)])
        posterior = vae.encode(x).latent_dist
        error = (vae.decode(posterior.sample()).sample - x).square().mean()
        loss = error + 1e-4 * posterior.kl().mean() / (28 * 28)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"autoencoder: step {step}, error {error.item():.5f}", flush=True)
    with torch.no_grad():
        z = vae.encode(pixels(images[:512])).latent_dist.sample()
    vae.register_to_config(scaling_factor=float(1 / z.std()), shift_factor=float(z.mean()))
    return vae.eval()


def pixels(images: np.ndarray) -> Tensor:
    """Images uint8 [b,y,x] as the autoencoder takes them [b,3,y,x]."""
    return torch.from_numpy(images).float()[:, None].expand(-1, 3, -1, -1) / 127.5 - 1


def transformer() -> SD3Transformer2DModel:
    """The teacher's: six blocks of eight heads, 3.3 million parameters."""
    return SD3Transformer2DModel(
        sample_size=28,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        num_attention_heads=8,
        attention_head_dim=16,
        caption_projection_dim=128,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        pos_embed_max_size=14,
        qk_norm="rms_norm",
    )


def main() -> None:
    """Write the pipeline."""
    parser = argparse.ArgumentParser(description="Make a small text-to-image pipeline.")
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    torch.manual_seed(0)
    files = sorted(options.images.glob("*.png"))[:4000]
    images = np.stack([np.asarray(Image.open(file).convert("L")) for file in files])
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    t5 = T5EncoderModel(T5Config(vocab_size=len(SPECIAL) + len(WORDS), pad_token_id=0, eos_token_id=1, **sizes))
    names = ("tokenizer", "tokenizer_2", "tokenizer_3")
    StableDiffusion3Pipeline(
        transformer=transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(images, options.steps),
        text_encoder=clip(32),
        text_encoder_2=clip(32),
        text_encoder_3=t5,
        **{name: tokenizer() for name in names},
    ).save_pretrained(options.out)


if __name__ == "__main__":
    main()
