"""The safetensors of a model's folder by their headers: how many numbers they hold, and their hash, without torch."""

import hashlib
import json
import struct
from math import prod
from pathlib import Path
from typing import Any

HEADER_MOST = 100 * 2**20
"""A header of more bytes is none."""
BYTES_OF_LENGTH = 8
"""At the start of a file, the length of its header."""


def parameters(folder: Path) -> int | None:
    """Numbers in the safetensors of a model's folder; None where there are none, or one is damaged."""
    try:
        headers = [_header(file)[0] for file in folder.glob("*.safetensors")]
        return sum(prod(entry["shape"]) for header in headers for entry in header.values()) or None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def sha256_of_weights(folder: Path) -> str | None:
    """What hashing.sha256_of_tensors is of the model in a folder, without loading it.

    None where that cannot be told: weights of another kind or precision than safetensors of float32, several variants.
    """
    try:
        places: dict[str, tuple[Path, int, int]] = {}
        for file in folder.glob("*.safetensors"):
            header, start = _header(file)
            if places.keys() & header.keys() or any(entry["dtype"] != "F32" for entry in header.values()):
                return None
            for name, entry in header.items():
                first, last = entry["data_offsets"]
                places[name] = file, start + first, last - first
        return _sha256(places) if places else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The entries of a file's tensors by name, and where their data begin.

    Raises:
        OSError, ValueError: It cannot be read.
    """
    with open(file, "rb") as stream:
        size = struct.unpack("<Q", stream.read(BYTES_OF_LENGTH).ljust(BYTES_OF_LENGTH, b"\0"))[0]
        if size > HEADER_MOST:
            raise ValueError(f"a header of {size} bytes")
        header = json.loads(stream.read(size))
    return {name: entry for name, entry in header.items() if name != "__metadata__"}, BYTES_OF_LENGTH + size


def _sha256(places: dict[str, tuple[Path, int, int]]) -> str:
    """Of names and data, in the order of names.

    Raises:
        ValueError: A file is cut short.
    """
    total = hashlib.sha256()
    for name, (file, first, size) in sorted(places.items()):
        total.update(name.encode())
        with open(file, "rb") as stream:
            stream.seek(first)
            data = stream.read(size)
        if len(data) != size:
            raise ValueError(f"{name} is cut short")
        total.update(data)
    return total.hexdigest()
