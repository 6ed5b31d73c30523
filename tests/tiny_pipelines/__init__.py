"""Tiny random text-to-image pipelines of every kind that has an adapter: weights, tokenizers and all, of our making.

folder = write_pipeline("sd3", tmp_path / "pipeline")
"""

import functools
from pathlib import Path

import pytest
import torch

from .crossed import hunyuan_dit, pixart, sana, wan
from .flux_family import bria, chroma, flux, flux2, flux2_dev, longcat_image, ovis_image
from .joint import aura_flow, hidream, hunyuan_image, lumina2, prx, qwen_image, sd3, z_image
from .parts import flow, kl

__all__ = [
    "HALF",
    "KINDS",
    "LATER",
    "LIKE_FLUX",
    "OTHERS",
    "WITH_SLOW",
    "flow",
    "flux",
    "kl",
    "sd3",
    "write_images",
    "write_pipeline",
]


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
