"""Public checkpoints: reading a file without executing anything, and the sizes that its tensors tell."""

import argparse
import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dit_shd.core.errors import UserError

Weights = Literal["ema", "model"]
"""Which weights of a training checkpoint."""
ENTRIES: dict[Weights | None, tuple[str, ...]] = {
    None: ("ema", "state_dict", "model"),
    "ema": ("ema",),
    "model": ("model", "state_dict"),
}
"""Under which names training checkpoints hold them, the first wins."""


def read_tensors(path: Path, weights: Weights | None = None) -> dict[str, Tensor]:
    """A flat state dict from a .safetensors or a PyTorch file. No pickled code is ever run (weights_only).

    Training checkpoints (DiT: model, ema, opt and an argparse.Namespace of args, which does nothing when it is made)
    hold several.

    Args:
        weights: which of them; None: the average where there is one.

    Raises:
        UserError: no such file, a file that is no checkpoint, or one that wants to execute code.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; wanted a checkpoint (.safetensors, .pt, .pth, .ckpt)")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    except pickle.UnpicklingError as error:
        wants = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise UserError(
            f"{path}: refused, because loading it would execute code{f' ({wants[1]})' if wants else ''} or it is no "
            "checkpoint; wanted tensors by name"
        ) from error
    except Exception as error:  # a broken file can fail in any way; none of them is worth a traceback
        raise UserError(f"{path}: not a readable checkpoint ({' '.join(str(error).split())[:120]})") from error
    state = _entry(path, state, weights)
    named = isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not named:
        raise UserError(f"{path}: wanted a state dict (names to tensors), found {type(state).__name__}")
    return state


def _entry(path: Path, state: Any, weights: Weights | None) -> Any:
    if not isinstance(state, dict):
        return state
    entries = [k for k, v in state.items() if isinstance(k, str) and isinstance(v, dict)]
    for name in ENTRIES[weights]:
        if name in entries:
            return state[name]
    if weights is not None:
        held = f"only {', '.join(entries)}" if entries else "one set of weights"
        raise UserError(f"{path}: wanted weights={weights}, and it holds {held}; leave weights out")
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
    """Names and shapes must be a model's own, and every tensor hold numbers of its own.

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
    odd = [k for k, v in state.items() if not v.is_floating_point() or v.layout != torch.strided]
    if odd:
        raise UserError(f"the checkpoint's {odd[0]} ({state[odd[0]].dtype}) is no dense floating-point tensor")
    held = {v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in state.values()}
    if sum(v.numel() * v.element_size() for v in state.values()) > sum(held.values()):
        raise UserError("the checkpoint's tensors share their memory; wanted values of its own for each")
