"""sha256 of files and of tensors."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn


def sha256(file: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_tensors(model: nn.Module, prefixes: tuple[str, ...] = ("",)) -> str:
    """Hexadecimal sha256 of a model's tensors, ordered by name: of those whose names begin with one of `prefixes`."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(prefixes):
            _add(total, name, tensor)
    return total.hexdigest()


def _add(total: "hashlib._Hash", name: str, tensor: Tensor) -> None:
    total.update(name.encode())
    total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
