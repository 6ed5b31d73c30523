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
from dit_shd.core.file_kinds import PICKLE, SAFETENSORS, TORCH, file_kind
from dit_shd.models import velocity

Weights = Literal["ema", "model"]
"""Which weights of a training checkpoint."""
ENTRIES: dict[Weights | None, tuple[str, ...]] = {
    None: ("ema", "state_dict", "model"),
    "ema": ("ema", "state_dict"),
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
        UserError: no such file, a file that is no checkpoint, one that wants to execute code, or one of a model that
            predicts something else than noise.
    """
    state = _load(path)
    velocity.refuse_told(path, {**_metadata(path), **state} if isinstance(state, dict) else state)
    told = _classes(state)
    state, entry = _entry(path, state, weights)
    if not _named(state):
        raise UserError(f"{path}: wanted a state dict (names to tensors), found {_contents(state)}")
    state = _inner(path, clean(state), weights, entry)
    table = state.get("y_embedder.embedding_table.weight")
    if told is not None and table is not None and table.shape[:1] == (told,):
        raise UserError(
            f"{path}: its class embedding has {told} rows for {told} classes, and none for `no class`, which guidance "
            "and dropped labels need; to use it without them, append a row and say guidance=1"
        )
    return state


def _load(path: Path) -> Any:
    """All that a file holds: tensors, and what else can be made without running code."""
    wanted = "wanted a checkpoint: safetensors, or a file of torch.save (.pt, .pth, .ckpt)"
    if not path.is_file():
        raise UserError(f"{path}: no such file; {wanted}")
    kind = file_kind(path)
    if kind not in (SAFETENSORS, TORCH, PICKLE):
        raise UserError(f"{path}: {wanted}, found {kind}")
    try:
        if kind == SAFETENSORS:
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]), path.open("rb") as stream:
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wants = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wants is None:
            raise UserError(f"{path}: {wanted}, found {kind} that is damaged or holds more than tensors") from error
        raise UserError(
            f"{path}: refused, because loading it would execute code ({wants[1]}); it holds more than tensors, names "
            "and numbers: save it again by torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:  # a broken file can fail in any way; none of them is worth a traceback
        found = f"{kind} of other things" if kind == PICKLE else f"a damaged one ({kind.split(' ', 1)[1]})"
        raise UserError(f"{path}: {wanted}, found {found}; copy or download it again") from error


def _metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself."""
    if file_kind(path) != SAFETENSORS:
        return {}
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata() or {}


def _named(state: Any) -> bool:
    return isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())


def _contents(state: Any) -> str:
    """What a file holds that is no state dict."""
    if not isinstance(state, dict):
        return f"a {type(state).__name__}"
    odd = [f"{str(k)[:40]} ({type(v).__name__})" for k, v in state.items() if not isinstance(v, Tensor)]
    return f"{', '.join(odd[:4])}{' and more' if len(odd) > 4 else ''}" if odd else "tensors without names"


def _classes(state: Any) -> int | None:
    """How many classes a training checkpoint says that its data have."""
    args = state.get("args") if isinstance(state, dict) else None
    told = args.get("num_classes") if isinstance(args, dict) else getattr(args, "num_classes", None)
    return told if isinstance(told, int) else None


def _entry(path: Path, state: Any, weights: Weights | None) -> tuple[Any, str]:
    """The part of a training checkpoint that holds the weights, and its name; all of another file, and no name."""
    if not isinstance(state, dict):
        return state, ""
    entries = [k for k, v in state.items() if isinstance(k, str) and isinstance(v, dict) and v]
    for name in ENTRIES[weights]:
        if name in entries:
            return state[name], name
    if weights is not None and entries:
        raise UserError(f"{path}: wanted weights={weights}, and it holds only {', '.join(entries)}; leave weights out")
    return state, ""


def _inner(path: Path, state: dict[str, Tensor], weights: Weights | None, entry: str) -> dict[str, Tensor]:
    """The tensors of the model, where all names begin with a word, as Lightning's do, or others stand beside it."""
    outer = sorted({name.removesuffix(FIRST) for name in state if name.endswith("." + FIRST)})
    if FIRST in state or not outer:
        if weights is not None and entry != weights and not (weights == "model" and entry):
            raise UserError(f"{path}: wanted weights={weights}, and it holds one set of weights; leave weights out")
        return state
    averages = [name for name in outer if "ema" in name.lower()]
    wanted = averages or outer
    if entry != weights:
        wanted = {"ema": averages, "model": [name for name in outer if name not in averages]}.get(weights or "", wanted)
    if len(wanted) != 1:
        held = ", ".join(name.rstrip(".") for name in outer)
        raise UserError(f"{path}: wanted one model, or one for weights=ema or model, found the models {held}")
    return {name.removeprefix(wanted[0]): v for name, v in state.items() if name.startswith(wanted[0])}


def clean(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what DDP, torch.compile and AveragedModel add: words in names, and a count of steps.

    Raises:
        UserError: two tensors have the same name then.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        short = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if short in found:
            raise UserError(f"two of its tensors are {short} when {' and '.join(WRAPPERS)} are taken off their names")
        if not (short == "n_averaged" and not tensor.ndim):
            found[short] = tensor
    return found


USUAL_CLASSES = (10, 100, 1000)
"""As many rows of a class embedding are more likely as many classes than one fewer."""
WRAPPERS = ("module", "_orig_mod")
FIRST = "x_embedder.proj.weight"
"""A tensor that every model of ours has, and has once."""


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
