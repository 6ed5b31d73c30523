"""Weights of feature networks, read and matched by name."""

import hashlib
import io
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dit_shd.core import hashing
from dit_shd.core.errors import UserError
from dit_shd.core.file_kinds import PICKLE, SAFETENSORS, TORCH, file_kind
from dit_shd.core.places import expanded

WHOLE = "model.safetensors"
"""What transformers reads where it is there, whatever is beside it."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
"""Ends of the names of files of torch.save."""


def read_weights(path: Path, advice: str) -> tuple[dict[str, Tensor], str]:
    """Read a weights file without ever running code from it.

    Safetensors are read by safetensors, files of torch.save by torch.load(weights_only=True).

    Args:
        path: The file.
        advice: Where such a file comes from; ends the error.

    Returns:
        Tensors by name, and the sha256 of the file.

    Raises:
        UserError: No such file; not a weights file; anything in it but tensors by name.
    """
    import safetensors
    from safetensors.torch import load

    path = Path(expanded(path))
    if not path.is_file():
        raise UserError(f"{path}: wanted a weights file, found {'a folder' if path.is_dir() else 'nothing'}; {advice}")
    kind = file_kind(path)
    if kind not in (SAFETENSORS, TORCH, PICKLE):
        raise UserError(f"{path}: wanted a weights file, found {kind}; {advice}")
    data = path.read_bytes()
    try:
        if kind == SAFETENSORS:
            content = load(data)
        else:
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (
        safetensors.SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
    ) as error:
        raise UserError(
            f"{path}: wanted tensors only, found {kind} that cannot be read safely (damaged, or with more); {advice}"
        ) from error
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{path}: wanted tensors by name, found {type(content).__name__} with other things; {advice}")
    return dict(content), hashlib.sha256(data).hexdigest()


def match_weights(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path, advice: str) -> None:
    """Refuse a state dict whose names or shapes are not those of the network.

    Raises:
        UserError: Naming the first tensor that is missing, left over or of another shape.
    """
    missing = [name for name in wanted if name not in state]
    extra = [name for name in state if name not in wanted]
    shapes = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    if missing or extra:
        difference = f"no '{missing[0]}'" if missing else f"an unknown '{extra[0]}'"
        count = f"{len(missing)} missing and {len(extra)} unknown of {len(wanted)} tensors"
        raise UserError(f"{path}: these are weights of another network: {difference} ({count}); {advice}")
    if shapes:
        name = shapes[0]
        shape, file_shape = tuple(wanted[name].shape), tuple(state[name].shape)
        raise UserError(f"{path}: '{name}': wanted shape {shape}, found {file_shape}; {advice}")


def weights_folder(place: Path, config: str, weights: str, advice: str) -> tuple[Path, str]:
    """A folder with a library's config and safetensors.

    Args:
        place: As the user gave it.
        config: The config's name.
        weights: The pattern of the weights' names.
        advice: Where such a folder comes from; ends the error.

    Returns:
        The folder, and the sha256 of its weights; of several files (shards) that of their hashes.

    Raises:
        UserError: No such folder, or one without both.
    """
    folder = Path(expanded(place))
    files = sorted(folder.glob(weights))
    if (folder / config).is_file() and files:
        files = [file for file in files if file.name == WHOLE] or files
        hashes = [hashing.sha256(file) for file in files]
        joint = hashlib.sha256("".join(hashes).encode()).hexdigest()
        return folder, hashes[0] if len(hashes) == 1 else joint
    kind = "nothing" if not folder.exists() else "a folder without them" if folder.is_dir() else "a file"
    pickles = sorted(file for file in folder.glob("*") if file.suffix in PICKLED)
    if (folder / config).is_file() and pickles:
        kind, advice = (
            f"{pickles[0].name}, which could run code,",
            f"convert it once: {_conversion(pickles[0], weights)}",
        )
    raise UserError(
        f"features.weights: wanted a folder with {config} and {weights}, found {kind} at {folder}; {advice}"
    )


def _conversion(pickle_file: Path, weights: str) -> str:
    """The command that writes the tensors of a file of torch.save as safetensors; it runs no code from the file."""
    out = pickle_file.with_name(weights.replace("*", "") if weights[0] != "*" else f"model{weights[1:]}")
    code = (
        f"import torch, safetensors.torch as s; w = torch.load({str(pickle_file)!r}, 'cpu', weights_only=True); "
        f"s.save_file({{k: v.contiguous() for k, v in w.get('state_dict', w).items()}}, {str(out)!r})"
    )
    return f'python -c "{code}"'
