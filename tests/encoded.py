"""Images, autoencoders and latent sets for tests."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dit_shd.core.config import make
from dit_shd.data.encode_config import EncodeConfig
from dit_shd.data.encoding import encode_to_shards
from dit_shd.data.latent_shards import open_tensors, shard_files

QUICK = dict(vae=None, size=8, batch_size=4, shard_size=8)


def pictures(count: int, size: int = 8, seed: int = 0) -> np.ndarray:
    """Noise, uint8 [n,y,x,3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def write_folder(root: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    """Class folders of png files, sorted as the images are where labels ascend."""
    for i, (image, label) in enumerate(zip(images, labels)):
        (root / f"class{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / f"class{label}" / f"{i:04d}.png")
    return root


def tiny_vae(**changes):
    """An AutoencoderKL that halves the side, with weights that give posteriors of some width."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    sizes = dict(block_out_channels=(4, 4), layers_per_block=1, norm_num_groups=2, latent_channels=2)
    blocks = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    return AutoencoderKL(**sizes, **blocks, **{"scaling_factor": 0.5, "shift_factor": 0.25, **changes}).eval()


def config(images, out, **changes) -> EncodeConfig:
    return make(EncodeConfig, {**QUICK, "images": str(images), "out": str(out), **changes})


def encode(images, out, **changes) -> Path:
    """Encode into a folder; the folder."""
    encode_to_shards(config(images, out, **changes))
    return Path(out)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by its path below the folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


KILLED = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
import accelerate, diffusers, PIL.Image, safetensors.numpy, tqdm
from dit_shd.data import encoding
from dit_shd.cli.program import main
random.seed(0)
kills = 0
while True:
    child = os.fork()
    if not child:
        os._exit(main(["encode", *sys.argv[1:]]))
    end = time.monotonic() + random.uniform(0.02, 0.3) * (1 if kills < 6 else 100)
    while not (done := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
        time.sleep(0.002)
    if done[0]:
        sys.exit(f"{kills} kills, exit code {os.waitstatus_to_exitcode(done[1])}")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kills += 1
"""
"""`dit-shd encode` killed (-9) after a while, again and again, until it ends: python -c KILLED KEY=VALUE ..."""


LABELS = np.arange(20) // 7


def tensors(folder):
    """posterior and labels of all shards together."""
    opened = [open_tensors(file) for file in shard_files(folder)]
    return tuple(np.concatenate([shard.get_tensor(name) for shard in opened]) for name in ("posterior", "label"))
