"""Encode images=FOLDER into latent shards out=LATENTS to train on; the same command again resumes and verifies.

With pipeline=PIPELINE, captions are encoded, too.
"""

from typing import ClassVar

import torch

from dit_shd.cli.commands import Command
from dit_shd.core.distributed import joined
from dit_shd.core.launcher import is_first_process
from dit_shd.data.buckets import encode_buckets
from dit_shd.data.encode_config import EncodeConfig
from dit_shd.data.encoding import encode_to_shards
from dit_shd.data.latent_shards import data_argument
from dit_shd.diffusion.pipelines import Prompts


class Encode(Command[EncodeConfig]):
    """Encode images into latent shards."""

    config = EncodeConfig
    divides = True
    places: ClassVar = {
        "images": ("images", "images"),
        "vae": ("autoencoder", "vae"),
        "pipeline": ("model", "pipeline"),
    }
    synonyms: ClassVar = {
        "folder": "images",
        "input": "images",
        "inputs": "images",
        "data": "images",
        "path": "images",
        "data_dir": "images",
        "data_path": "images",
        "dataset": "images",
        "output": "out",
        "output_dir": "out",
    }

    def run(self, config: EncodeConfig) -> None:
        config.check()
        prompts = None
        if config.pipeline is not None:
            options = config.precision, config.adapter, config.text_tokens
            device = joined().device or torch.device("cpu")
            prompts = Prompts.load(config.pipeline, device, *options, (config.size, config.size))
        if config.buckets and prompts is not None:
            counts = encode_buckets(config, prompts)
            if is_first_process():
                print(f"done: {config.out}: {', '.join(f'{count} images of {name}' for name, count in counts.items())}")
                print(f"next: dit-shd train CONFIG data={data_argument('text_buckets', config.out)}")
            return
        latents = encode_to_shards(config, prompts)
        if is_first_process():  # of several under a launcher
            print(latents.words("latents" if prompts is None else "text_latents"))
