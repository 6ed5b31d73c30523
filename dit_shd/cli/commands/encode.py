"""Encode images=FOLDER into latent shards out=LATENTS to train on; the same command again resumes and verifies."""

from typing import ClassVar

from dit_shd.cli.commands import Command
from dit_shd.core.distributed import is_first_process
from dit_shd.data.encode_config import EncodeConfig
from dit_shd.data.encoding import encode_to_shards


class Encode(Command[EncodeConfig]):
    """Encode images into latent shards."""

    config = EncodeConfig
    places: ClassVar = {"images": ("images", "images"), "vae": ("autoencoder", "vae")}

    def run(self, config: EncodeConfig) -> None:
        latents = encode_to_shards(config)
        if is_first_process():  # of several under a launcher
            print(latents.words())
