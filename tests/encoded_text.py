"""Tiny latents with embeddings of captions."""

import torch
from tiny_pipelines import write_images

from dit_shd.core.config import make
from dit_shd.data.encode_config import EncodeConfig
from dit_shd.data.encoding import encode_to_shards
from dit_shd.diffusion.pipelines import Prompts

CAPTIONS = {"a": "a thin seven", "b": None, "c": "two digits : four and seven with a zero", "d": "a nine", "e": ""}
"""By the image's name; None: no file."""


def encode(folder, pipeline, images=None, captions=CAPTIONS, **options):
    """Latents and embeddings of images with captions, in a folder; images of noise where none are given."""
    if images is None:
        images = folder / "images"
        if not images.exists():
            write_images(images, captions)
    values = {"images": str(images), "out": folder / "latents", "size": 16, "shard_size": 2, "workers": 1}
    config = make(EncodeConfig, {**values, "pipeline": str(pipeline), **options}, "encode")
    tokens = config.text_tokens
    prompts = Prompts.load(str(pipeline), torch.device("cpu"), text_tokens=tokens, size=(config.size, config.size))
    encode_to_shards(config, prompts)
    return config.out
