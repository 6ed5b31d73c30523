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
from PIL import Image
from pyarrow import parquet

from dit_shd.core.config import make
from dit_shd.data.datasets.latents import Latents
from dit_shd.data.encoding import EncodeConfig, encode_to_shards

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
        return Latents(folder / "l", verify=draw.random() < 0.5).batch(np.arange(6), 0, 0, range(6))
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


CLASSES = [
    Class("latent shards", "damaged shards, headers and an index that lie; training, encode", 50, shards),
    Class("images to encode", "broken, bombs, links, pipes, odd names; encode", 40, class_folders),
    Class("tables to encode", "npz and Parquet: damaged, other types, paths in cells, zeros; encode", 40, tables),
]
