"""The safetensors of a model's folder: how many numbers they hold, and their hash, without torch."""

import hashlib
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open


def parameters(folder: Path) -> int | None:
    """Numbers in the safetensors of a model's folder; None where there are none, or one is damaged."""
    try:
        return sum(prod(file.get_slice(name).get_shape()) for name, file in _tensors(folder)) or None
    except (OSError, SafetensorError):
        return None


def sha256_of_weights(folder: Path) -> str | None:
    """What hashing.sha256_of_tensors is of the model in a folder, without loading it.

    None where that cannot be told: weights of another kind or precision than safetensors of float32, several variants.
    """
    try:
        tensors = _tensors(folder)
        if not tensors or len(dict(tensors)) < len(tensors):
            return None
        if any(file.get_slice(name).get_dtype() != "F32" for name, file in tensors):
            return None
        total = hashlib.sha256()
        for name, file in sorted(tensors, key=lambda each: each[0]):
            total.update(name.encode())
            total.update(file.get_tensor(name).tobytes())
        return total.hexdigest()
    except (OSError, SafetensorError):
        return None


def _tensors(folder: Path) -> list[tuple[str, Any]]:
    """The name of every tensor, and its file."""
    files = [safe_open(file, "numpy") for file in folder.glob("*.safetensors")]
    return [(name, file) for file in files for name in file.keys()]  # noqa: SIM118
