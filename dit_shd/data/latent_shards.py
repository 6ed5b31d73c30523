"""Latent shards: what a VAE makes of a set of images, in safetensors files that are memory-mapped.

LATENTS/
  latents.json           written last: shape, classes, autoencoder, and every shard with its count, size and sha256
  000000000.safetensors  named by the number of its first image
  skipped.jsonl          images that could not be read, and why

A shard holds `posterior` [n, flips, parts, c, y, x] (the image and, where flips = 2, its mirror; the posterior's mean
and, where parts = 2, its deviation, both scaled as the diffusion model sees them) and `label` int64 [n]. What a draw
needs of one image lies in one piece of the file.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dit_shd.core.errors import UserError
from dit_shd.core.files import atomic_file

INDEX = "latents.json"
FORMAT = 1
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16)}
"""Of the posterior, by its name in a safetensors header."""
_NAME = re.compile(r"\d{9}\.safetensors")
_KEY = "dit_shd"
"""The one entry of a shard's metadata (safetensors writes several in an order that changes from run to run)."""


@dataclass(frozen=True)
class ShardEntry:
    """A shard as latents.json tells of it."""

    file: str
    count: int
    bytes: int
    sha256: str
    """Of names, types, shapes and contents of its tensors, of what was skipped, and of remarks."""


@dataclass(frozen=True)
class LatentSet:
    """latents.json."""

    folder: Path
    shape: tuple[int, int, int]
    """(c, y, x) of one latent."""
    flips: int
    """2: mirrored images are there, too."""
    parts: int
    """2: mean and deviation; 1: mean only, the deviation is zero (pixels as latents)."""
    dtype: str
    classes: tuple[str, ...]
    """Names; label i is class i."""
    about: dict[str, Any]
    """How they were made: images, size, vae, vae_sha256, ..."""
    shards: tuple[ShardEntry, ...]

    @property
    def row(self) -> tuple[int, ...]:
        """Shape of one image's entry in `posterior`."""
        return (self.flips, self.parts, *self.shape)

    def __len__(self) -> int:
        return sum(entry.count for entry in self.shards)

    def words(self) -> str:
        """What was made, and what to do next, in lines that can be pasted."""
        told = f"{len(self)} images in {len(self.classes)} classes, latents of shape {list(self.shape)}"
        data = yaml.safe_dump({"name": "latents", "path": str(self.folder)}, default_flow_style=True, width=2**20)
        return f"done: {self.folder}: {told}\nnext: dit-shd train CONFIG data={shlex.quote(data.strip())}"


@dataclass(frozen=True)
class ShardHeader:
    """What is known of a shard without reading its latents."""

    shape: tuple[int, ...]
    dtype: str
    skipped: list[list[Any]]
    """[number, name, reason] of the images that could not be read."""
    remarks: list[list[Any]]
    """[remark, count, name of the first] on images that are there."""
    sha256: str


def shard_file(folder: Path, first: int) -> Path:
    """The file of the shard that begins with image `first`."""
    return folder / f"{first:09d}.safetensors"


def shard_files(folder: Path) -> list[Path]:
    """All shards there are, in the order of their images."""
    return sorted(file for file in folder.glob("*.safetensors") if _NAME.fullmatch(file.name))


def write_shard(
    file: Path,
    posterior: np.ndarray,
    labels: np.ndarray,
    skipped: Sequence[Sequence[Any]],
    remarks: Sequence[Sequence[Any]] = (),
) -> None:
    """Write one shard whole or not at all; skipped, remarks: as ShardHeader has them.

    Raises:
        UserError: it cannot be written, for a full disk above all; the shards before it are as they were.
    """
    from safetensors.numpy import save

    tensors = {"posterior": posterior, "label": labels}
    told = _told(skipped, remarks)
    data = save(tensors, {_KEY: json.dumps({**told, "sha256": _digest(tensors, told)})})
    with atomic_file(file) as stream:
        stream.write(data)


def read_header(file: Path) -> ShardHeader:
    """Names, types and sizes, which safetensors has compared with the file's length; no latent is read.

    Raises:
        UserError: truncated, or no shard of ours.
    """
    try:
        with open_tensors(file) as tensors:
            posterior, labels = tensors.get_slice("posterior"), tensors.get_slice("label")
            told = json.loads(tensors.metadata()[_KEY])
            skipped = [[int(number), str(name), str(reason)] for number, name, reason in told["skipped"]]
            remarks = [[str(remark), int(count), str(name)] for remark, count, name in told.get("remarks", [])]
            shape, dtype = tuple(posterior.get_shape()), posterior.get_dtype()
            header = ShardHeader(shape, dtype, skipped, remarks, str(told["sha256"]))
            wrong = (
                sorted(tensors.keys()) != ["label", "posterior"]
                or labels.get_dtype() != "I64"
                or list(labels.get_shape()) != [header.shape[0]]
                or header.dtype not in DTYPES
                or len(header.shape) != 6
            )
    except Exception as error:  # a stranger's file can be wrong in any way
        raise damaged(file, error) from error
    if wrong:
        raise damaged(file, f"posterior {header.dtype} {list(header.shape)}")
    return header


def verify_shard(file: Path) -> ShardHeader:
    """Read everything and compare it with the shard's checksum.

    Raises:
        UserError: damaged, or no shard of ours.
    """
    header = read_header(file)
    try:
        with open_tensors(file) as tensors:
            told = _told(header.skipped, header.remarks)
            found = _digest({name: tensors.get_tensor(name) for name in tensors.keys()}, told)  # noqa: SIM118
    except Exception as error:
        raise damaged(file, error) from error
    if found != header.sha256:
        raise damaged(file, "its checksum is another")
    return header


def open_tensors(file: Path) -> Any:
    """A shard, memory-mapped by safetensors: `get_slice(name)[rows]` reads those rows only."""
    from safetensors import safe_open

    return safe_open(file, "np")


def damaged(file: Path, reason: object) -> UserError:
    words = " ".join(str(reason).split())[:120]
    return UserError(f"{file}: a damaged shard or none of dit-shd encode ({words}); the encode command makes it anew")


def _told(skipped: Sequence[Sequence[Any]], remarks: Sequence[Sequence[Any]]) -> dict[str, Any]:
    told = {"skipped": [list(entry) for entry in skipped]}
    return {**told, "remarks": [list(entry) for entry in remarks]} if remarks else told


def _digest(tensors: Mapping[str, np.ndarray], told: dict[str, Any]) -> str:
    total = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name, array in sorted(tensors.items()):
        total.update(f"{name} {array.dtype.str} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def write_index(latents: LatentSet) -> None:
    """Write latents.json, which makes the set complete."""
    values = {"format": FORMAT, "count": len(latents)}
    values |= {name: value for name, value in asdict(latents).items() if name != "folder"}
    with atomic_file(latents.folder / INDEX) as stream:
        stream.write(json.dumps(values, indent=1).encode())


def read_index(folder: Path) -> LatentSet:
    """The set of latents in a folder, by latents.json alone.

    Raises:
        UserError: no such set, one that is not complete yet, or a file that was not written by encode.
    """
    file = folder / INDEX
    if not file.is_file():
        begun = f"{len(shard_files(folder))} shards of a set that is not complete yet" if folder.is_dir() else "nothing"
        raise UserError(f"{folder}: wanted a folder of latents, found {begun}; make it by: dit-shd encode images=...")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']}, this version reads {FORMAT}")
        latents = LatentSet(
            folder=folder,
            shape=_whole_numbers(values["shape"], 3),
            flips=_whole_numbers([values["flips"]], 1)[0],
            parts=_whole_numbers([values["parts"]], 1)[0],
            dtype=str(values["dtype"]),
            classes=tuple(str(name) for name in values["classes"]),
            about=dict(values["about"]),
            shards=tuple(_entry(entry) for entry in values["shards"]),
        )
        if latents.flips > 2 or latents.parts > 2 or latents.dtype not in DTYPES or not latents.classes:
            raise ValueError("flips, parts, dtype or classes are out of range")
        if not len(latents) or len(latents) != values["count"]:
            raise ValueError(f"count: {values['count']}, but the shards hold {len(latents)}")
        return latents
    except Exception as error:  # a stranger's file can be wrong in any way
        reason = f"{type(error).__name__}: " if isinstance(error, (KeyError, TypeError)) else ""
        words = " ".join(str(error).split())[:120]
        raise UserError(f"{file}: not written by dit-shd encode ({reason}{words}); encode again") from error


def _entry(values: dict[str, Any]) -> ShardEntry:
    entry = ShardEntry(**values)
    if not isinstance(entry.file, str) or not _NAME.fullmatch(entry.file):
        raise ValueError(f"a shard cannot be called {str(entry.file)[:40]!r}")
    if type(entry.count) is not int or entry.count < 0:
        raise ValueError(f"{entry.file}: count: wanted a whole number from 0")
    return entry


def _whole_numbers(values: Any, count: int) -> Any:
    if len(values) != count or any(type(v) is not int or not 0 < v < 2**31 for v in values):
        raise ValueError(f"wanted {count} whole numbers from 1, found {str(values)[:40]}")
    return tuple(values)
