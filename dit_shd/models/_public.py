"""Public checkpoints: reading a file without executing anything, and the sizes that its tensors tell."""

import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dit_shd.errors import UserError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A flat state dict from a .safetensors or a PyTorch file. No pickled code is ever run (weights_only).

    Raises:
        UserError: no such file, a file that is no checkpoint, or one that wants to execute code.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; wanted a checkpoint (.safetensors, .pt, .pth, .ckpt)")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: refused, because loading it would execute code or it is no checkpoint; "
            "wanted a plain state dict of tensors"
        ) from error
    except Exception as error:  # a broken file can fail in any way; none of them is worth a traceback
        raise UserError(f"{path}: not a readable checkpoint ({' '.join(str(error).split())[:120]})") from error
    for wrapper in ("ema", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    named = isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not named:
        raise UserError(f"{path}: wanted a state dict (names to tensors), found {type(state).__name__}")
    return state


def clean(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes that DDP and torch.compile add to names."""
    return {PREFIXES.sub("", k): v for k, v in state.items()}


PREFIXES = re.compile(r"^((module|_orig_mod)\.)+")


def size(family: str, state: Mapping[str, Tensor], name: str, axis: int, ndim: int = 2) -> int:
    """The length of one axis of a tensor.

    Raises:
        UserError: there is no such tensor, or it has another number of axes, or none of its axes is that long.
    """
    found = state.get(name)
    if found is None or found.ndim != ndim or not found.numel():
        what = "missing" if found is None else f"of shape {tuple(found.shape)}"
        raise UserError(f"not a state dict of {family}: {name} is {what}, wanted {ndim} axes")
    return found.shape[axis]


def shapes(family: str, state: Mapping[str, Tensor], block: str) -> tuple[dict[str, Any], int]:
    """What the tensors of both families tell by their shapes: keywords of the class, and the width e.

    Args:
        block: the name of a block that every such model has.
    """
    width, channels, patch = (size(family, state, "x_embedder.proj.weight", i, 4) for i in range(3))
    config = dict(
        sample_size=math.isqrt(size(family, state, "pos_embed", 1, 3)) * patch,
        patch_size=patch,
        in_channels=channels,
        num_classes=size(family, state, "y_embedder.embedding_table.weight", 0) - 1,
        mlp_ratio=size(family, state, f"{block}.mlp.fc1.weight", 0) / width,
        learn_sigma=size(family, state, "final_layer.linear.weight", 0) == 2 * channels * patch**2,
    )
    return config, width


def count(state: Mapping[str, Tensor], section: str) -> int:
    """How many blocks a section has."""
    return len({k.split(".")[1] for k in state if k.startswith(section + ".")})


def check_fits(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Names and shapes must be a model's own.

    Raises:
        UserError: saying what does not fit.
    """
    own = model.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if missing or extra or wrong:
        shapes = [f"{k} wanted {tuple(own[k].shape)} found {tuple(state[k].shape)}" for k in sorted(wrong)[:2]]
        raise UserError(
            f"the checkpoint does not fit {type(model).__name__}: {len(missing)} tensors missing {missing[:2]}, "
            f"{len(extra)} unknown {extra[:2]}, {len(wrong)} of another shape {shapes}"
        )
