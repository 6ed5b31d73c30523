"""Latent shards: a set of images encoded by a VAE, in safetensors files that are memory-mapped.

LATENTS/
  latents.json           written last: shape, classes, autoencoder, and every shard with its count, size and sha256
  000000000.safetensors  named by the number of its first image
  skipped.jsonl          images that could not be read, and why

A shard holds `posterior` [n,flips,parts,c,y,x] (the image and, if flips = 2, its mirror image; the posterior's mean
and, if parts = 2, its deviation, both scaled for the diffusion model) and `label` int64 [n]. Each draw of an image is
one contiguous read.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from dit_shd.core.errors import UserError, error_line
from dit_shd.core.files import atomic_file

if TYPE_CHECKING:
    from safetensors import safe_open

INDEX = "latents.json"
BUCKETS = "buckets.json"
"""In a folder of sets of several sizes; see data/buckets.py."""
FORMAT = 1
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16)}
"""Types of the posterior, by their names in a safetensors header."""
_NAME = re.compile(r"\d{9}\.safetensors")
_KEY = "dit_shd"
"""The one entry of a shard's metadata (safetensors writes several in an order that changes from run to run)."""


@dataclass(frozen=True)
class ShardEntry:
    """A shard's entry in latents.json."""

    file: str
    count: int
    bytes: int
    sha256: str
    """Of names, types, shapes and contents of its tensors, of the skipped images, and of remarks."""


@dataclass(frozen=True)
class LatentSet:
    """The content of latents.json."""

    folder: Path
    shape: tuple[int, int, int]
    """(c, y, x) of one latent."""
    flips: int
    """2 with mirrored images, else 1."""
    parts: int
    """2: mean and deviation; 1: mean only, the deviation is zero (pixels as latents)."""
    dtype: str
    classes: tuple[str, ...]
    """Names; label i is class i."""
    about: dict[str, Any]
    """Their origin: images, size, vae, vae_sha256, ..."""
    shards: tuple[ShardEntry, ...]

    @property
    def row(self) -> tuple[int, ...]:
        """Shape of one image's entry in `posterior`."""
        return (self.flips, self.parts, *self.shape)

    def __len__(self) -> int:
        return sum(entry.count for entry in self.shards)

    def words(self, dataset: str = "latents") -> str:
        """A summary of the set and the command that trains on it, in lines that can be pasted.

        Args:
            dataset: The name of the dataset that reads it.
        """
        summary = f"{len(self)} images in {len(self.classes)} classes, latents of shape {list(self.shape)}"
        return f"done: {self.folder}: {summary}\nnext: dit-shd train CONFIG data={data_argument(dataset, self.folder)}"


def data_argument(dataset: str, folder: Path) -> str:
    """The value of `data=` for a folder, as it can be pasted into a shell.

    Args:
        dataset: The name of the dataset that reads it.
        folder: Its path.
    """
    values = {"name": dataset, "path": str(folder)}
    data = yaml.safe_dump(values, default_flow_style=True, width=2**20, allow_unicode=True)
    return shlex.quote(data.strip())


@dataclass(frozen=True)
class ShardHeader:
    """The content of a shard without its latents."""

    shape: tuple[int, ...]
    dtype: str
    skipped: list[list[Any]]
    """[number, name, reason] of the images that could not be read."""
    remarks: list[list[Any]]
    """[remark, count, name of the first] on encoded images."""
    sha256: str


def shard_file(folder: Path, first: int) -> Path:
    """The file of the shard that begins with image `first`."""
    return folder / f"{first:09d}.safetensors"


def shard_files(folder: Path) -> list[Path]:
    """All finished shards, in the order of their images."""
    return sorted(file for file in folder.glob("*.safetensors") if _NAME.fullmatch(file.name))


def write_shard(
    file: Path,
    posterior: np.ndarray,
    labels: np.ndarray,
    skipped: Sequence[Sequence[Any]],
    remarks: Sequence[Sequence[Any]] = (),
) -> None:
    """Write one shard in one step.

    Args:
        file: The file.
        posterior: [n,flips,parts,c,y,x]
        labels: Int64 [n]
        skipped: As in ShardHeader.
        remarks: As in ShardHeader.

    Raises:
        UserError: It cannot be written, on a full disk above all; earlier shards are unchanged.
    """
    from safetensors.numpy import save

    tensors = {"posterior": posterior, "label": labels}
    metadata = _metadata(skipped, remarks)
    data = save(tensors, {_KEY: json.dumps({**metadata, "sha256": _digest(tensors, metadata)})})
    with atomic_file(file) as stream:
        stream.write(data)


def read_header(file: Path) -> ShardHeader:
    """Names, types and sizes, which safetensors compares with the file's length; no latent is read.

    Raises:
        UserError: It is truncated, or not a shard of dit-shd.
    """
    try:
        with open_tensors(file) as tensors:
            posterior, labels = tensors.get_slice("posterior"), tensors.get_slice("label")
            metadata = json.loads(tensors.metadata()[_KEY])
            skipped = [[int(number), str(name), str(reason)] for number, name, reason in metadata["skipped"]]
            remarks = [[str(remark), int(count), str(name)] for remark, count, name in metadata.get("remarks", [])]
            shape, dtype = tuple(posterior.get_shape()), posterior.get_dtype()
            header = ShardHeader(shape, dtype, skipped, remarks, str(metadata["sha256"]))
            wrong = (
                sorted(tensors.keys()) != ["label", "posterior"]
                or labels.get_dtype() != "I64"
                or list(labels.get_shape()) != [header.shape[0]]
                or header.dtype not in DTYPES
                or len(header.shape) != 6
            )
    except Exception as error:  # an untrusted file can be wrong in any way
        raise damaged(file, error) from error
    if wrong:
        raise damaged(file, f"posterior {header.dtype} {list(header.shape)}")
    return header


def verify_shard(file: Path) -> ShardHeader:
    """Read everything and compare it with the shard's checksum.

    Raises:
        UserError: It is damaged, or not a shard of dit-shd.
    """
    header = read_header(file)
    try:
        with open_tensors(file) as tensors:
            metadata = _metadata(header.skipped, header.remarks)
            digest = _digest({name: tensors.get_tensor(name) for name in tensors.keys()}, metadata)  # noqa: SIM118
    except Exception as error:
        raise damaged(file, error) from error
    if digest != header.sha256:
        raise damaged(file, "its checksum is another")
    return header


def open_tensors(file: Path) -> "safe_open":
    """A shard, memory-mapped by safetensors: `get_slice(name)[rows]` reads those rows only."""
    from safetensors import safe_open

    return safe_open(file, "np")


def mapped(file: Path, name: str) -> np.ndarray:
    """A tensor of a shard, whose rows are read from the file when they are used.

    Raises:
        UserError: The system maps no more files.
    """
    from safetensors import safe_open

    try:
        return safe_open(file, "pt").get_tensor(name).numpy()  # numpy's own get_tensor reads all of it
    except RuntimeError as error:
        raise UserError(
            f"{file}: cannot be mapped ({error_line(error, 120)}); Linux maps vm.max_map_count files at once: encode "
            "with a larger shard_size, or raise it"
        ) from error


def damaged(file: Path, reason: object) -> UserError:
    """The error for a shard that cannot be read."""
    words = " ".join(str(reason).split())[:120]
    return UserError(f"{file}: a damaged shard or none of dit-shd encode ({words}); the encode command makes it anew")


def _metadata(skipped: Sequence[Sequence[Any]], remarks: Sequence[Sequence[Any]]) -> dict[str, Any]:
    metadata = {"skipped": [list(entry) for entry in skipped]}
    return {**metadata, "remarks": [list(entry) for entry in remarks]} if remarks else metadata


def _digest(tensors: Mapping[str, np.ndarray], metadata: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def write_index(latents: LatentSet) -> None:
    """Write latents.json, which marks the set as complete."""
    values = {"format": FORMAT, "count": len(latents)}
    values |= {name: value for name, value in asdict(latents).items() if name != "folder"}
    with atomic_file(latents.folder / INDEX) as stream:
        stream.write(json.dumps(values, indent=1).encode())


def read_index(folder: Path) -> LatentSet:
    """The set of latents in a folder, by latents.json alone.

    Raises:
        UserError: No such set, one that is not complete yet, or a file that was not written by encode.
    """
    file = folder / INDEX
    if not file.is_file():
        content = (
            f"{len(shard_files(folder))} shards of a set that is not complete yet" if folder.is_dir() else "nothing"
        )
        if (folder / BUCKETS).is_file():
            raise UserError(f"{folder}: wanted latents of one size, found buckets; say data.name=text_buckets")
        raise UserError(f"{folder}: wanted a folder of latents, found {content}; make it by: dit-shd encode images=...")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']}, this version reads {FORMAT}")
        latents = LatentSet(
            folder=folder,
            shape=_latent_shape(values["shape"]),
            flips=_positive(values["flips"]),
            parts=_positive(values["parts"]),
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
    except Exception as error:  # an untrusted file can be wrong in any way
        reason = f"{type(error).__name__}: " if isinstance(error, (KeyError, TypeError)) else ""
        raise UserError(
            f"{file}: not written by dit-shd encode ({reason}{error_line(error, 120)}); encode again"
        ) from error


def _entry(values: dict[str, Any]) -> ShardEntry:
    entry = ShardEntry(**values)
    if not isinstance(entry.file, str) or not _NAME.fullmatch(entry.file):
        raise ValueError(f"a shard cannot have the name {str(entry.file)[:40]!r}")
    if type(entry.count) is not int or entry.count < 0:
        raise ValueError(f"{entry.file}: count: wanted a whole number from 0")
    return entry


def _latent_shape(values: list[object]) -> tuple[int, int, int]:
    if len(values) != 3:
        raise ValueError(f"wanted 3 whole numbers from 1, found {str(values)[:40]}")
    channels, height, width = map(_positive, values)
    return channels, height, width


def _positive(value: object) -> int:
    if type(value) is not int or not 0 < value < 2**31:
        raise ValueError(f"wanted a whole number from 1, found {str(value)[:40]}")
    return value
