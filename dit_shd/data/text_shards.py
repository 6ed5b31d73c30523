"""Shards of embeddings of captions, beside shards of latents; see data/text_encoding.py for the layout."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit_shd.core.errors import UserError, error_line
from dit_shd.core.files import atomic_file, atomic_path
from dit_shd.data.latent_shards import damaged
from dit_shd.data.pipeline_record import PipelineRecord
from dit_shd.data.text_condition import TextCondition

FOLDER, INDEX, EMPTY = "text", "text.json", "empty.safetensors"
FORMAT = 1
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Of embeddings, by name."""
_KEY = "dit_shd"


@dataclass(frozen=True, eq=False)
class TextShard:
    """The captions of a shard's images."""

    condition: TextCondition
    """Of each different caption."""
    rows: Tensor
    """Which of them each image has, int64 [n]."""
    captions: tuple[str, ...]
    """The different ones."""
    too_long: int
    """How many of them were cut."""

    @property
    def count(self) -> int:
        """n, the number of images."""
        return len(self.rows)


@dataclass(frozen=True)
class TextEntry:
    """A shard's entry in text.json."""

    file: str
    count: int
    bytes: int
    sha256: str
    too_long: int


@dataclass(frozen=True)
class TextSet:
    """The content of text.json."""

    record: PipelineRecord
    dtype: str
    shards: tuple[TextEntry, ...]


def write_shard(file: Path, shard: TextShard) -> None:
    """Write one shard in one step."""
    captions = torch.frombuffer(bytearray(json.dumps(shard.captions).encode()), dtype=torch.uint8)
    tensors = {**_tensors(shard.condition), "rows": shard.rows, "captions": captions}
    _write(file, tensors, {"too_long": shard.too_long})


def write_condition(file: Path, condition: TextCondition) -> None:
    """Write a condition alone."""
    _write(file, _tensors(condition), {})


def read_condition(file: Path) -> TextCondition:
    """A condition that was written alone.

    Raises:
        UserError: It is damaged.
    """
    return _condition(_verified(file)[0])


def verify(file: Path) -> TextShard:
    """Read a shard and compare it with its checksum.

    Raises:
        UserError: Damaged, or not a shard of dit-shd.
    """
    tensors, about = _verified(file)
    try:
        return TextShard(
            condition=_condition(tensors),
            rows=tensors["rows"],
            captions=captions_of(tensors["captions"]),
            too_long=int(about["too_long"]),
        )
    except Exception as error:  # an untrusted file can be wrong in any way
        raise damaged(file, error) from error


def write_index(folder: Path, files: Sequence[Path], record: PipelineRecord, dtype: str) -> list[TextEntry]:
    """Write text.json, which marks the embeddings of a folder of latents as complete; its entries."""
    entries = []
    for file in files:
        tensors, about = _header(file)
        entries.append(TextEntry(file.name, tensors["rows"], file.stat().st_size, about["sha256"], about["too_long"]))
    values = {"format": FORMAT, "dtype": dtype, "pipeline": record.values(), "shards": [asdict(e) for e in entries]}
    with atomic_file(folder / FOLDER / INDEX) as stream:
        stream.write(json.dumps(values, indent=1).encode())
    return entries


def read_index(folder: Path) -> TextSet:
    """The embeddings of a folder of latents, by text.json alone.

    Raises:
        UserError: There are none, or they are not complete.
    """
    file = folder / FOLDER / INDEX
    if not file.is_file():
        raise UserError(
            f"{folder}: wanted latents with embeddings of captions, found no {FOLDER}/{INDEX}; make them by: dit-shd "
            "encode images=... pipeline=... out=..."
        )
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["format"] != FORMAT or values["dtype"] not in DTYPES:
            raise ValueError(f"format {values['format']} of {values['dtype']}")
        entries = tuple(TextEntry(**entry) for entry in values["shards"])
        if any("/" in entry.file or type(entry.count) is not int for entry in entries):
            raise ValueError("a shard of no such name or count")
        return TextSet(PipelineRecord.of_values(values["pipeline"]), values["dtype"], entries)
    except Exception as error:  # an untrusted file can be wrong in any way
        raise UserError(f"{file}: not written by dit-shd encode ({error_line(error, 120)}); encode again") from error


def open_shard(folder: Path, entry: TextEntry) -> Path:
    """The file of a shard, whose header is compared with the index.

    Raises:
        UserError: It is not the shard that text.json lists, or it is damaged.
    """
    file = folder / FOLDER / entry.file
    sizes, about = _header(file)
    in_file = (sizes["rows"], file.stat().st_size, about["sha256"])
    if in_file != (entry.count, entry.bytes, entry.sha256):
        raise damaged(file, f"{INDEX} lists another")
    return file


def captions_of(tensor: Tensor) -> tuple[str, ...]:
    """The captions in a shard's tensor of that name."""
    return tuple(str(caption) for caption in json.loads(bytes(tensor.numpy())))


def _tensors(condition: TextCondition) -> dict[str, Tensor]:
    tensors = {"embeddings": condition.embeddings, "mask": condition.mask}
    return tensors if condition.pooled is None else {**tensors, "pooled": condition.pooled}


def _condition(tensors: Mapping[str, Tensor]) -> TextCondition:
    return TextCondition(tensors["embeddings"], tensors["mask"].bool(), tensors.get("pooled"))


def _write(file: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    with atomic_path(file) as part:  # not by way of bytes: embeddings of a shard can be gigabytes
        save_file(tensors, part, {_KEY: json.dumps({**about, "sha256": _digest(tensors, about)})})


def _header(file: Path) -> tuple[dict[str, int], dict[str, Any]]:
    """Lengths of the tensors and what else a shard says of itself; no embedding is read."""
    from safetensors import safe_open

    try:
        with safe_open(file, "pt") as tensors:
            about = json.loads(tensors.metadata()[_KEY])
            lengths = {name: tensors.get_slice(name).get_shape()[0] for name in tensors.keys()}  # noqa: SIM118
            return lengths, {**about, "sha256": str(about["sha256"]), "too_long": int(about.get("too_long", 0))}
    except Exception as error:  # an untrusted file can be wrong in any way
        raise damaged(file, error) from error


def _verified(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors.torch import load_file

    _, about = _header(file)
    try:
        tensors = load_file(file)
    except Exception as error:
        raise damaged(file, error) from error
    if _digest(tensors, {k: v for k, v in about.items() if k == "too_long" and "rows" in tensors}) != about["sha256"]:
        raise damaged(file, "its checksum is another")
    return tensors, about


def _digest(tensors: Mapping[str, Tensor], about: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
