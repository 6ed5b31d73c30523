"""What `dit-shd encode` reads and writes: images to be encoded, latent shards."""

import io
import json
import os
import random
import shutil
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow
import torch
from diffusers import AutoencoderKL
from PIL import Image
from pyarrow import parquet

from dit_shd.core.config import make
from dit_shd.core.rng import Draws
from dit_shd.data.datasets.latents import Latents
from dit_shd.data.encode_config import EncodeConfig
from dit_shd.data.encoding import encode_to_shards
from dit_shd.data.latent_origin import Origin, before_training, decoder
from dit_shd.data.model_origin import of_source
from dit_shd.data.open_images import open_images

from . import Class
from .damage import WEIRD, bend_file, bent_bytes, bent_values, exploit

QUICK = {"vae": None, "size": 8, "batch_size": 2, "shard_size": 4, "workers": 1}


def encoded(images: object, out: Path, **changes: object) -> Path:
    encode_to_shards(make(EncodeConfig, {"images": str(images), "out": str(out), **QUICK, **changes}))
    return out


def picture(draw: random.Random, kind: str = "png") -> bytes:
    stream = io.BytesIO()
    Image.frombytes("RGB", (9, 8), draw.randbytes(216)).save(stream, kind)
    return stream.getvalue()


@cache
def latents() -> Path:
    root = Path(tempfile.mkdtemp())
    draw = random.Random(0)
    (root / "images" / "a").mkdir(parents=True)
    for i in range(6):
        (root / "images" / "a" / f"{i}.png").write_bytes(picture(draw))
    return encoded(root / "images", root / "latents")


@cache
def bombs() -> Path:
    """134 million zeros as one image of an npz, and 128 MiB of zeros as one cell of a Parquet file."""
    folder = Path(tempfile.mkdtemp())
    with zipfile.ZipFile(folder / "set.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        head = {"descr": "|u1", "fortran_order": False, "shape": (1, 2**14, 2**13, 1)}
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, head)
            for _ in range(8):
                member.write(bytes(2**24))
    parquet.write_table(pyarrow.table({"image": [bytes(2**27)]}), folder / "set.parquet", compression="zstd")
    return folder


def shards(draw: random.Random, folder: Path) -> object:
    """A folder of latents: damaged shards, headers and an index that lie, files of others."""
    shutil.copytree(latents(), folder / "l")
    shard = draw.choice(sorted((folder / "l").glob("*.safetensors")))
    index = folder / "l" / "latents.json"
    how = draw.randrange(6)
    if how == 0:
        bend_file(draw, shard)
    elif how == 1:
        data = shard.read_bytes()
        size = int.from_bytes(data[:8], "little")
        text = json.dumps(bent_values(draw, bent_values(draw, json.loads(data[8 : 8 + size])))).encode()
        length = draw.choice([len(text), 0, 2**63, 2 * len(text)])
        shard.write_bytes(length.to_bytes(8, "little") + text + data[8 + size :])
    elif how == 2:
        bend_file(draw, index)
    elif how == 3:
        index.write_text(json.dumps(bent_values(draw, json.loads(index.read_text()))))
    elif how == 4:
        told = json.loads(index.read_text())
        told["shards"][0][draw.choice(["file", "count", "bytes", "sha256"])] = draw.choice(WEIRD)
        index.write_text(json.dumps(told))
    else:
        shard.write_bytes(draw.choice([exploit(), b"", b"\x80\x04."]))
    if draw.random() < 0.5:
        return Latents(folder / "l", verify=draw.random() < 0.5).batch(np.arange(6), Draws(0, 0, range(6), 6))
    return encoded(latents().parent / "images", folder / "l")


def class_folders(draw: random.Random, folder: Path) -> object:
    """Images to be encoded: broken, of other kinds, huge when unfolded or scaled, links, pipes, odd names."""
    for name in ("a", draw.choice(["b", "..b", "b\n", "\udcff", " "])):
        (folder / "set" / name).mkdir(parents=True)
        for i in range(2):
            (folder / "set" / name / f"{i}.png").write_bytes(picture(draw, draw.choice(["png", "jpeg", "webp", "gif"])))
    file = folder / "set" / "a" / draw.choice(["1.png", "9.jpg"])
    how = draw.randrange(9)
    if how == 0:
        file.write_bytes(bent_bytes(draw, picture(draw, draw.choice(["png", "jpeg", "webp", "bmp", "ppm"]))))
    elif how == 1:
        script = b"%!PS-Adobe-3.0 EPSF-3.0\n(pwned) (w) file"
        file.write_bytes(draw.choice([b"", exploit(), script, draw.randbytes(99)]))
    elif how == 2:
        Image.new("1", draw.choice([(30000, 30000), (1, 300_000), (70000, 2)])).save(folder / "set" / "a" / "9.png")
    elif how == 3:
        Image.new(draw.choice(["I;16", "LA", "P", "1"]), (9, 9)).save(folder / "set" / "a" / "9.png")
    elif how == 4:
        (folder / "set" / "a" / "9.png").symlink_to(draw.choice(["/etc/passwd", "9.png", "/dev/zero", "../../.."]))
    elif how == 5:
        (folder / "set" / "c").symlink_to(draw.choice(["/", "..", "c", "nowhere"]))
    elif how == 6:
        os.mkfifo(folder / "set" / "a" / "9.png")
    elif how == 7:
        (folder / "set" / draw.choice(["loose.png", "a.txt"])).write_bytes(picture(draw))
    else:
        (folder / "set" / "a" / "9.png").mkdir()
    return encoded(folder / "set", folder / "l", follow_links=False)


def tables(draw: random.Random, folder: Path) -> object:
    """npz, Parquet files and saved datasets: damaged, of other types, with paths in cells, zeros that unfold."""
    how = draw.randrange(4)
    if how == 0:
        images = np.frombuffer(draw.randbytes(6 * 192), np.uint8).reshape(6, 8, 8, 3)
        odd = draw.choice([np.arange(6) - 1, np.full(6, 2**40), np.arange(3), np.array([{}] * 6), np.arange(6)])
        np.savez_compressed(folder / "set.npz", draw.choice([images, images[..., :1], images / 255]), odd)
        if draw.random() < 0.5:
            bend_file(draw, folder / "set.npz")
        return encoded(folder / "set.npz", folder / "l")
    if how == 1:
        return encoded(bombs() / draw.choice(["set.npz", "set.parquet"]), folder / "l")
    cells = [{"bytes": picture(draw), "path": "x.png"} for _ in range(4)]
    cells[1] = draw.choice([None, {"bytes": None, "path": "/etc/passwd"}, {"bytes": exploit(), "path": None}, cells[1]])
    labels = draw.choice([[0, 1, 2, 0], [0, None, 1, 1], [-1] * 4, [2**62] * 4, ["a", "b", "a", "c"], [0.5] * 4])
    table = pyarrow.table({draw.choice(["image", "image", "picture"]): cells, "label": labels})
    names = draw.choice([["a"] * 3, [], 7, {"a": 1}, ["x"]])
    told = {"info": {"features": {"label": {"names": names}}}}
    table = table.replace_schema_metadata({"huggingface": draw.choice([json.dumps(told), "{", "[]"])})
    parquet.write_table(table, folder / "set.parquet", compression=draw.choice(["zstd", "snappy"]))
    if how == 3:
        bend_file(draw, folder / "set.parquet")
    return encoded(folder / "set.parquet", folder / "l")


def layouts(draw: random.Random, folder: Path) -> object:
    """Folders as others lay them out: label files and READMEs that lie, splits, links, names that are hard to print."""
    root = folder / "set"
    names = draw.choice([("train", "val"), ("01", "1"), ("__MACOSX", "a"), ("\udcff", "b\n\x1b[2J"), ("x" * 200, "y")])
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / draw.choice(["0.png", "._0.png", "\udcfe.png", "0.JFIF", "0.tiff"])).write_bytes(picture(draw))
    how = draw.randrange(5)
    label: object = draw.choice([0, -1, 2**70, 1e300, "", "a", None, [0, 1], {}, True])
    file = draw.choice([f"{names[0]}/0.png", "../../etc/passwd", "\x00", "", "/", f"{names[0]}\\0.png"])
    if how == 0:
        told = draw.choice([{"labels": [[file, label]]}, {"labels": {file: label}}, {"labels": label}, [], 3])
        (root / "dataset.json").write_text(draw.choice([json.dumps(told), "[" * 9999, '{"labels": ']))
    elif how == 1:
        row = {"file_name": file, "label": label}
        (root / "metadata.jsonl").write_text(draw.choice([json.dumps(row), json.dumps([row]), "{" * 999]))
        if draw.random() < 0.3:
            bend_file(draw, root / "metadata.jsonl")
    elif how == 2:
        text = draw.choice(["file_name,label\n0.png", "file_name\n\x00", 'file_name,label\n"0.png', "", "a" * 2**18])
        (root / "metadata.csv").write_bytes(draw.choice([text.encode(), draw.randbytes(99), exploit()]))
    elif how == 3:
        (root / names[0] / "up").symlink_to(draw.choice(["..", ".", str(root), "../.."]))
    else:
        shutil.rmtree(root)
        for part in draw.choice([("train", "test"), ("a/train", "b/train"), ("[x]/train", "*"), ("a::b", "c://d")]):
            (root / part).mkdir(parents=True, exist_ok=True)
            parquet.write_table(pyarrow.table({"image": [picture(draw)]}), root / part / "0.parquet")
        paths = ["https://0.0.0.0/x", "/etc/*", "../*", "**", {}, None, 3, [[]], "hf://datasets/x"]
        config: object = draw.choice([{"config_name": draw.choice(WEIRD), "data_files": draw.choice(paths)}, 3, None])
        head = draw.choice(
            [json.dumps({"configs": [config] * draw.randrange(3)}), "a: &a [*a]", "!!python/name:os.system", "{"]
        )
        (root / "README.md").write_text(f"---\n{head}\n---\n")
    split, subset = draw.choice([None, "train", "val", "../x"]), draw.choice([None, "*", "a"]) if how == 4 else None
    if draw.random() < 0.3 and how < 4:
        return [batch.shape for batch in open_images(str(root), "samples").batches(2)]
    return encoded(root, folder / "l", split=split, subset=subset, follow_links=how == 3 and draw.random() < 0.2)


def numbers(draw: random.Random, folder: Path) -> object:
    """Numbers of the user's choice for classes: of strangers, twice, out of range, no numbers; names of any kind."""
    names = ["a", draw.choice(["b", "3", "b\n", "\udcff", "n01440764"])]
    for name in names:
        (folder / "set" / name).mkdir(parents=True)
        (folder / "set" / name / "0.png").write_bytes(picture(draw))
    chosen = draw.choice([0, 1, 3, 3, *WEIRD, -1, 2**20, 2**63, 1.5])
    classes = draw.choice([{names[0]: 1, names[1]: chosen}, {names[0]: chosen}, {"x": 0}, {}, chosen, [0, 1]])
    return Latents(encoded(folder / "set", folder / "l", classes=classes)).class_names


@cache
def autoencoder() -> Path:
    folder = Path(tempfile.mkdtemp())
    sizes = dict(block_out_channels=(4, 4), norm_num_groups=2, latent_channels=2)
    blocks = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    AutoencoderKL(**sizes, **blocks).save_pretrained(folder / "vae")
    keep = before_training(str(folder / "vae"), Origin(), 2, folder / "run")
    (folder / "run").mkdir()
    keep.write(folder / "run")
    shutil.rmtree(folder / "vae")
    return folder


def autoencoders(draw: random.Random, folder: Path) -> object:
    """An autoencoder's folder with a config of others or that lies, damaged weights, pickles; a run's record of one."""
    shutil.copytree(autoencoder() / "run", folder / "run")
    vae, record = folder / "run" / "vae", folder / "run" / "autoencoder.json"
    config = json.loads((vae / "config.json").read_text())
    how = draw.randrange(6)
    if how == 0:
        keys = ["scaling_factor", "shift_factor", "latents_mean", "latents_std", "latent_channels", "norm_num_groups"]
        config |= {key: draw.choice([*WEIRD, [1.0, 2.0], 0.5]) for key in draw.sample(keys, 2)}
    elif how == 1:
        config["_class_name"] = draw.choice([*WEIRD, "AutoencoderTiny", "UNet2DConditionModel", "VQModel", "os.system"])
    elif how == 2:
        bend_file(draw, vae / "diffusion_pytorch_model.safetensors")
    elif how == 3:
        (vae / "diffusion_pytorch_model.safetensors").unlink()
        (vae / "diffusion_pytorch_model.bin").write_bytes(exploit())
    elif how == 4:
        record.write_text(json.dumps(bent_values(draw, json.loads(record.read_text()))))
    else:
        bend_file(draw, draw.choice([vae / "config.json", record]))
    if how < 2:
        (vae / "config.json").write_text(json.dumps(config))
    return decoder("auto", of_source(str(folder / "run"), 2), 2, torch.device("cpu"))


CLASSES = [
    Class("latent shards", "damaged shards, headers and an index that lie; training, encode", 50, shards),
    Class(
        "autoencoders",
        "configs that lie, other classes, damaged weights, pickles, a run's record; sampling",
        40,
        autoencoders,
    ),
    Class("images to encode", "broken, bombs, links, pipes, odd names; encode", 40, class_folders),
    Class(
        "layouts of data", "label files and READMEs that lie, splits, links, odd names; encode, samples", 120, layouts
    ),
    Class(
        "numbers of classes", "of strangers, twice, out of range, no numbers, odd names; encode classes=", 40, numbers
    ),
    Class("tables to encode", "npz and Parquet: damaged, other types, paths in cells, zeros; encode", 40, tables),
]
