"""Files of strangers: checkpoints, safetensors, model folders, npz, images, shards."""

import argparse
import io
import json
import math
import random
import shutil
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dit_shd.core.config import make
from dit_shd.core.rng import Draws
from dit_shd.data.datasets.npz import Npz
from dit_shd.data.open_images import open_images
from dit_shd.evaluation.reference import open_reference
from dit_shd.models import loading
from dit_shd.models.conversion import ConvertConfig, convert
from dit_shd.models.families.dit import DiT
from dit_shd.models.families.mdt import MDTv2

from . import Class
from .damage import bend_file, bent_values, exploit


@cache
def small() -> MDTv2:
    torch.manual_seed(0)
    return MDTv2(
        sample_size=8, patch_size=2, in_channels=1, num_layers=4, decode_layer=2, num_attention_heads=2,
        attention_head_dim=4, num_classes=3,
    )  # fmt: skip


@cache
def small_dit() -> DiT:
    torch.manual_seed(0)
    return DiT(
        sample_size=8, in_channels=1, num_layers=2, num_attention_heads=2, attention_head_dim=4, num_classes=3
    )  # fmt: skip


@cache
def saved() -> Path:
    folder = Path(tempfile.mkdtemp()) / "model"
    small().save_pretrained(folder)
    return folder


def checkpoint(draw: random.Random, folder: Path) -> object:
    """A PyTorch file: damaged, of other things, or one that would execute code."""
    file = folder / f"model{draw.choice(['.pt', '.pth', '.ckpt', '.bin'])}"
    how = draw.randrange(4)
    if how == 0:
        file.write_bytes(exploit(draw.choice([0, 2, 4])))
    elif how == 1:
        with zipfile.ZipFile(file, "w") as archive:  # as torch.save lays it out
            archive.writestr("archive/data.pkl", exploit())
            archive.writestr("archive/version", "3")
    elif how == 2:
        torch.save(
            draw.choice([None, [1], {"a": 1}, {1: torch.ones(2)}, {"ema": {"x": torch.ones(1)}}, torch.ones(3)]), file
        )
    else:
        torch.save(small().state_dict(), file)
        bend_file(draw, file)
    return loading.load(file)


class Pretender(argparse.Namespace):
    """Looks like the one class that is let through, and is another."""


def convertible(draw: random.Random, folder: Path) -> object:
    """Files and folders to convert: tensors of other shapes, types and names, one number posing as many, args that are
    more than a Namespace, damaged bytes; and something already where the result should go."""
    file, out = folder / f"c{draw.choice(['.pt', '.ckpt', '.safetensors'])}", folder / draw.choice(["out", "out.pt"])
    state = {k: v.clone() for k, v in (small_dit() if draw.random() < 0.5 else small()).to_public().items()}
    for _ in range(draw.choice([0, 1, 1, 3])):
        name = draw.choice(sorted(state))
        old = state.pop(name)
        new = [
            old[:0],
            old.flatten(),
            torch.tensor(1.0),
            old.int(),
            old.half(),
            old * math.nan,
        ]
        if file.suffix != ".safetensors":
            new += [
                old.cfloat(),
                torch.zeros(1).expand(10**12),
                torch.zeros(1).expand(*[10**4] * old.ndim),
                old.to_sparse(),
            ]
        state[draw.choice([name, name, name + "x", "", "blocks.99.mlp.fc1.weight"])] = draw.choice(new)
    if file.suffix == ".safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, file)
    else:
        sit = argparse.Namespace(model="SiT-XL/2", prediction="velocity")
        args = draw.choice([argparse.Namespace(lr=1.0), Pretender(lr=1.0), {"x": [None] * 9}, sit])
        wrapped = {"ema": state, "model": draw.choice([state, {}, None, 3]), "args": args}
        torch.save(draw.choice([state, wrapped, {"module": wrapped}, list(state.values())]), file)
    if draw.random() < 0.3:
        bend_file(draw, file)
    if draw.random() < 0.3:
        out.mkdir()
        (out / draw.choice(["config.json", "precious"])).write_text("x")
    given = {"heads": 2, "weights": draw.choice([None, "ema", "model"]), "force": draw.random() < 0.5}
    try:
        return convert(make(ConvertConfig, {"source": str(file), "out": str(out), **given}))
    finally:
        left = {"precious"} & {path.name for path in out.glob("*")}
        assert left or not (out / "precious").exists()


def weights(draw: random.Random, folder: Path) -> object:
    """safetensors: damaged bytes, and headers that lie."""
    shutil.copytree(saved(), folder / "model")
    file = next((folder / "model").glob("*.safetensors"))
    how = draw.randrange(3)
    if how == 0:
        bend_file(draw, file)
    elif how == 1:
        data = file.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        header = bent_values(draw, bent_values(draw, header))
        text = json.dumps(header).encode()
        length = draw.choice([len(text), 0, 2**63, len(text) * 2])
        file.write_bytes(length.to_bytes(8, "little") + text + data[8 + size :])
    else:
        tensors = load_file(file)
        name = draw.choice(sorted(tensors))
        tensors[name] = draw.choice([torch.ones(1), torch.full_like(tensors[name], float("nan")), tensors[name].int()])
        save_file(tensors, file)
    return loading.load(folder / "model")


def model_config(draw: random.Random, folder: Path) -> object:
    """config.json of a model folder: other classes, sizes that would fill the memory, files that are elsewhere."""
    shutil.copytree(saved(), folder / "model")
    file = folder / "model" / "config.json"
    config = json.loads(file.read_text())
    if draw.random() < 0.5:
        key = draw.choice(sorted(config))
        config[key] = draw.choice(
            [10**6, 10**12, 2**31, -3, 0.5, "x", None, "os.system", "AutoencoderKL", "../MDTv2", [4] * 99]
        )
    else:
        config = bent_values(draw, config)
    file.write_text(json.dumps(config))
    return loading.load(folder / "model")


def pixels(draw: random.Random, n: int = 6) -> np.ndarray:
    return np.random.default_rng(draw.randrange(99)).integers(0, 256, (n, 8, 8, draw.choice([1, 3])), dtype=np.uint8)


@cache
def zeros(n: int) -> bytes:
    """A compressed npz of so many black pictures."""
    stream = io.BytesIO()
    np.savez_compressed(stream, np.zeros((n, 512, 512, 3), np.uint8))
    return stream.getvalue()


@cache
def huge() -> bytes:
    """A PNG of 110 kB, 900 million pixels."""
    stream = io.BytesIO()
    Image.new("1", (30000, 30000)).save(stream, format="png")
    return stream.getvalue()


def npz(draw: random.Random, folder: Path) -> object:
    """npz files: damaged, of objects, with headers that lie, with zeros that unfold, with labels that are none."""
    file = folder / "images.npz"
    images = pixels(draw)
    how = draw.randrange(7)
    if how == 6:
        odd = [
            np.array([exploit()] * 6, dtype=object),
            np.zeros((6, 2**13)),
            np.zeros(6, "U200000"),
            np.zeros(6, "M8[s]"),
            np.zeros(6, [("a", "i4"), ("b", "O")]),
            np.full(6, -(2**63)),
            np.float64(np.nan),
        ]
        np.savez_compressed(file, images, draw.choice(odd))
    elif how == 0:
        np.savez(file, np.array([{"x": exploit()}], dtype=object), np.arange(1))
    elif how == 1:
        head = {
            "descr": "|u1",
            "fortran_order": False,
            "shape": draw.choice([(10**6, 4096, 4096, 3), (-1, 8, 8, 1), (2**40,)]),
        }
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(stream, head)
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("arr_0.npy", stream.getvalue() + images.tobytes())
    elif how == 2:
        file.write_bytes(zeros(draw.choice([2] * 5 + [1500])))
    elif how == 3:
        odd = draw.choice(
            [images.astype(np.float64) * np.nan, images[0], images[:0], images.astype("U1"), np.asfortranarray(images)]
        )
        np.savez(file, odd, draw.choice([np.arange(6), np.arange(3) - 2, np.array(["a"] * 6), np.full(6, 1e300)]))
    elif how == 4:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("../../escaped.npy", b"x")
            archive.writestr("arr_0.npy", draw.randbytes(300))
    else:
        np.savez(file, images, np.arange(6))
        bend_file(draw, file)
    if draw.random() < 0.5:
        return Npz(file).batch(np.array([0]), Draws(0, 0, [0], 1))
    return [batch.shape for batch in open_images(str(file), "samples").batches(4)]


def statistics(draw: random.Random, folder: Path) -> object:
    """Reference statistics: shapes, signs and sizes that no covariance has."""
    r = np.random.default_rng(draw.randrange(99))
    sigma = np.cov(r.normal(size=(20, 6)), rowvar=False)
    bent = draw.choice(
        [-sigma, sigma[:3], np.full_like(sigma, np.nan), sigma * 1e300, sigma + np.triu(sigma), sigma.astype("U9")]
    )
    arrays = {"mu": draw.choice([np.zeros(6), np.zeros(5), np.full(6, np.inf), np.zeros((6, 6))]), "sigma": bent}
    np.savez(folder / "statistics.npz", **arrays)
    if draw.random() < 0.4:
        bend_file(draw, folder / "statistics.npz")
    return open_reference(str(folder / "statistics.npz"), "reference")


def images(draw: random.Random, folder: Path) -> object:
    """A folder of images: truncated, of other kinds and sizes, huge when unfolded, no images, links in circles."""
    for i in range(3):
        Image.fromarray(pixels(draw)[0].repeat(3, 2)[..., :3]).save(folder / f"{i}.png")
    file = folder / draw.choice(["1.png", "9.png", "2.jpg"])
    how = draw.randrange(6)
    if how == 0:
        bend_file(draw, folder / "1.png")
    elif how == 1:
        mode = draw.choice(["CMYK", "LA", "RGBA", "I;16", "P", "1", "F"])
        shot = Image.new(mode, (8, 8))
        shot.save(folder / ("9.tiff" if mode in ("CMYK", "F") else "9.png"))
    elif how == 2:
        file.write_bytes(draw.randbytes(200))
    elif how == 3:
        (folder / "9.png").write_bytes(huge())
    elif how == 4:
        (folder / "9.png").symlink_to(folder / "9.png")
    else:
        Image.new("RGB", (draw.choice([1, 9, 800]), 8)).save(folder / "9.png")
    return [batch.shape for batch in open_images(str(folder), "samples").batches(2)]


CLASSES = [
    Class("PyTorch files", "damaged, of other things, pickles that execute; models.load", 60, checkpoint),
    Class("safetensors", "damaged bytes, headers that lie, NaN, other types; models.load", 60, weights),
    Class(
        "model configs",
        "config.json with other classes and sizes that would fill the memory; models.load",
        60,
        model_config,
    ),
    Class("convertible files", "odd shapes, types, names, args, one number posing as many; convert", 80, convertible),
    Class("npz", "objects, lying headers, zeros that unfold, names that escape, odd labels; data, samples", 70, npz),
    Class("statistics", "covariances that are none; references", 30, statistics),
    Class(
        "images", "truncated, odd modes and sizes, 900 million pixels in 110 kB, circular links; samples", 40, images
    ),
]
