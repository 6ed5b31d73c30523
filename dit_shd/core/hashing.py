"""sha256 of files and of tensors."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
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


def sha256_of_weights(folder: Path) -> str | None:
    """What sha256_of_tensors is of the model in a folder, without loading it.

    None where that cannot be told: weights of another kind or precision than safetensors of float32, several variants.
    """
    try:
        files = [safe_open(file, "pt") for file in folder.glob("*.safetensors")]
        places = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        if not files or sum(len(file.keys()) for file in files) > len(places):
            return None
        total = hashlib.sha256()
        for name in sorted(places):
            tensor = places[name].get_tensor(name)
            if tensor.dtype != torch.float32:
                return None
            _add(total, name, tensor)
        return total.hexdigest()
    except (OSError, SafetensorError):
        return None


def _add(total: "hashlib._Hash", name: str, tensor: Tensor) -> None:
    total.update(name.encode())
    total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
