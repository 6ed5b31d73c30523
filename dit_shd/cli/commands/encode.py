"""`dit-shd encode`: images into latent shards to train on."""

import argparse
import os

from dit_shd.cli.arguments import values_of


def run_encode(options: argparse.Namespace) -> None:
    from dit_shd.core.config import make
    from dit_shd.core.places import look

    look(values := values_of(options), {"images": ("images", "images"), "vae": ("autoencoder", "vae")})
    from dit_shd.data.encoding import EncodeConfig, encode_to_shards

    config = make(EncodeConfig, values, "encode")
    latents = encode_to_shards(config)
    if int(os.environ.get("RANK", "0")):  # under a launcher one process speaks
        return
    print(latents.words())
