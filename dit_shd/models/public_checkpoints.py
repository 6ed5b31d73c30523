"""Public checkpoints: reading a file without executing anything, and a model's sizes from the tensors' shapes."""

import argparse
import json
import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dit_shd.core.errors import UserError
from dit_shd.core.file_kinds import PICKLE, SAFETENSORS, TORCH, file_kind
from dit_shd.models import velocity
from dit_shd.models.prediction import CONVENTIONS, NOISE, PREDICTION

Weights = Literal["ema", "model"]
"""The weights of a training checkpoint to read."""
ENTRIES: dict[Weights | None, tuple[str, ...]] = {
    None: ("ema", "state_dict", "model"),
    "ema": ("ema", "state_dict"),
    "model": ("model", "state_dict"),
}
"""Their names in training checkpoints; the first that exists is read."""
HEADS_KEY, CLASS_NAMES = "heads", "class_names"
"""Keys of the metadata of a file, beside that of the prediction."""


@dataclass(frozen=True)
class Recorded:
    """What `dit-shd convert` says of a model in the metadata of a safetensors file, for it is not in the tensors."""

    prediction: str | None = None
    """The convention of a model of velocities; None for noise."""
    heads: int | None = None
    class_names: tuple[str | None, ...] | None = None
    """As of ModelShape."""


def read_tensors(path: Path, weights: Weights | None = None, prediction: str = NOISE) -> dict[str, Tensor]:
    """Read a flat state dict from a .safetensors or PyTorch file; no pickled code is ever run (weights_only).

    A training checkpoint holds several (DiT: model, ema, opt and args, an argparse.Namespace without side effects).

    Args:
        path: The file.
        weights: Which of them; None for the average where there is one.
        prediction: What the model predicts, as the user says.

    Raises:
        UserError: No such file, not a checkpoint, one that needs to execute code, or (for noise) of a model that by its
            file predicts something else.
    """
    contents = _load(path)
    if prediction == NOISE:
        velocity.refuse_by_metadata(path, {**_metadata(path), **contents} if isinstance(contents, dict) else contents)
    classes = _classes(contents)
    contents, entry = _entry(path, contents, weights)
    if not _is_state_dict(contents):
        raise UserError(f"{path}: wanted a state dict (names to tensors), found {_describe(contents)}")
    state = _inner(path, clean(contents), weights, entry)
    table = state.get("y_embedder.embedding_table.weight")
    if classes is not None and table is not None and table.shape[:1] == (classes,):
        raise UserError(
            f"{path}: its class embedding has {classes} rows for {classes} classes, and none for `no class`, which "
            "guidance and dropped labels need; to use it without them, append a row and say guidance=1"
        )
    return state


def _load(path: Path) -> object:
    """The contents of a file: tensors, and other data that can be read without running code."""
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
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code is None:
            raise UserError(f"{path}: {wanted}, found {kind} that is damaged or holds more than tensors") from error
        raise UserError(
            f"{path}: refused, because loading it would execute code ({code[1]}); it holds more than tensors, names "
            "and numbers: save it again by torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:  # of several libraries: a damaged file can fail in any way
        actual = f"{kind} of other things" if kind == PICKLE else f"a damaged one ({kind.partition(' ')[2]})"
        raise UserError(f"{path}: {wanted}, found {actual}; copy or download it again") from error


def _metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty for other files."""
    if file_kind(path) != SAFETENSORS:
        return {}
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata() or {}


def recorded(path: Path) -> Recorded:
    """What is recorded in a file that `dit-shd convert` wrote; nothing for other files."""
    try:
        metadata = _metadata(path)
    except (OSError, safetensors.SafetensorError):  # read_tensors says what is wrong with it
        return Recorded()
    prediction, heads = metadata.get(PREDICTION), metadata.get(HEADS_KEY, "")
    try:
        names = json.loads(metadata.get(CLASS_NAMES, "null"))
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(name is None or isinstance(name, str) for name in names):
        names = None
    return Recorded(
        prediction=prediction if prediction in CONVENTIONS else None,
        heads=int(heads) if re.fullmatch("[0-9]{1,6}", heads) else None,
        class_names=None if names is None else tuple(names),
    )


def _is_state_dict(contents: object) -> TypeGuard[dict[str, Tensor]]:
    if not isinstance(contents, dict):
        return False
    return all(isinstance(k, str) and isinstance(v, Tensor) for k, v in contents.items())


def _describe(contents: object) -> str:
    """The contents of a file that are not a state dict, for an error."""
    if not isinstance(contents, dict):
        return f"a {type(contents).__name__}"
    others = [f"{str(k)[:40]} ({type(v).__name__})" for k, v in contents.items() if not isinstance(v, Tensor)]
    return f"{', '.join(others[:4])}{' and more' if len(others) > 4 else ''}" if others else "tensors without names"


def _classes(contents: object) -> int | None:
    """The number of classes in the args of a training checkpoint."""
    args = contents.get("args") if isinstance(contents, dict) else None
    classes = args.get("num_classes") if isinstance(args, dict) else getattr(args, "num_classes", None)
    return classes if isinstance(classes, int) else None


def _entry(path: Path, contents: object, weights: Weights | None) -> tuple[object, str]:
    """The entry of a training checkpoint that holds the weights, and its name; the contents of other files, and ""."""
    if not isinstance(contents, dict):
        return contents, ""
    entries = [k for k, v in contents.items() if isinstance(k, str) and isinstance(v, dict) and v]
    averages = [k for k in entries if "ema" in k.lower() and _has_tensors(contents[k])]
    if weights != "model" and "ema" not in entries and averages:  # model_ema, state_dict_ema, ...
        if len(averages) > 1:
            raise UserError(f"{path}: wanted one average of the weights, or weights=model, found {', '.join(averages)}")
        return contents[averages[0]], "ema"
    for name in ENTRIES[weights]:
        if name in entries:
            return contents[name], name
    if weights is not None and entries:
        raise UserError(f"{path}: wanted weights={weights}, and it holds only {', '.join(entries)}; leave weights out")
    return contents, ""


def _has_tensors(entry: dict[Any, Any]) -> bool:
    """Whether an entry holds tensors, by name or in lists."""
    values = (x for value in entry.values() for x in (value if isinstance(value, (list, tuple)) else [value]))
    return any(isinstance(x, Tensor) for x in values)


def _inner(path: Path, state: dict[str, Tensor], weights: Weights | None, entry: str) -> dict[str, Tensor]:
    """The tensors of one model, where all names have a prefix (as Lightning's do) or a file holds several models."""
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
        models = ", ".join(name.rstrip(".") for name in outer)
        raise UserError(f"{path}: wanted one model, or one for weights=ema or model, found the models {models}")
    return {name.removeprefix(wanted[0]): v for name, v in state.items() if name.startswith(wanted[0])}


def clean(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the parts of names, and the step count, that DDP, torch.compile and AveragedModel add.

    Raises:
        UserError: Two tensors have the same name then.
    """
    cleaned: dict[str, Tensor] = {}
    for name, tensor in state.items():
        short = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if short in cleaned:
            raise UserError(f"two of its tensors are {short} when {' and '.join(WRAPPERS)} are taken off their names")
        if not (short == "n_averaged" and not tensor.ndim):
            cleaned[short] = tensor
    return cleaned


USUAL_CLASSES = (10, 100, 1000)
"""A class embedding of this many rows is more likely of as many classes than of one fewer."""
WRAPPERS = ("module", "_orig_mod")
FIRST = "x_embedder.proj.weight"
"""A tensor that every family has once."""


def size(family: str, state: Mapping[str, Tensor], name: str, axis: int, ndim: int = 2) -> int:
    """The length of one axis of a tensor.

    Raises:
        UserError: There is no such tensor, it has another number of axes, or it is empty.
    """
    tensor = state.get(name)
    if tensor is None or tensor.ndim != ndim or not tensor.numel():
        what = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
        raise UserError(f"not a state dict of {family}: {name} is {what}, wanted {ndim} axes")
    return tensor.shape[axis]


def shapes(family: str, state: Mapping[str, Tensor], block: str) -> tuple[dict[str, Any], int]:
    """The sizes of DiT or MDTv2 from the shapes of the tensors: arguments of the class, and the width e.

    Args:
        family: The class, for errors.
        state: The tensors by name.
        block: The name of a block that every such model has.

    Raises:
        UserError: It is no state dict of this family.
    """
    hidden = size(family, state, f"{block}.mlp.fc1.weight", 0)
    width, channels, patch = (size(family, state, "x_embedder.proj.weight", i, 4) for i in range(3))
    config = dict(
        sample_size=math.isqrt(size(family, state, "pos_embed", 1, 3)) * patch,
        patch_size=patch,
        in_channels=channels,
        num_classes=size(family, state, "y_embedder.embedding_table.weight", 0) - 1,
        mlp_ratio=ratio if int(width * (ratio := hidden / width)) == hidden else math.nextafter(ratio, math.inf),
        learn_sigma=size(family, state, "final_layer.linear.weight", 0) == 2 * channels * patch**2,
    )
    return config, width


def count(state: Mapping[str, Tensor], section: str) -> int:
    """The number of blocks in a section."""
    return len({k.split(".")[1] for k in state if k.startswith(section + ".")})


def check_fits(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Check that a state dict has a model's names and shapes, dense and without shared memory.

    Raises:
        UserError: What does not fit.
    """
    wanted = model.state_dict()
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    wrong = [k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape]
    if missing or extra or wrong:
        shapes = [f"{k} wanted {tuple(wanted[k].shape)} found {tuple(state[k].shape)}" for k in sorted(wrong)[:2]]
        raise UserError(
            f"the checkpoint does not fit {type(model).__name__}: {len(missing)} tensors missing {missing[:2]}, "
            f"{len(extra)} unknown {extra[:2]}, {len(wrong)} of another shape {shapes}"
        )
    unusable = [k for k, v in state.items() if not v.is_floating_point() or v.layout != torch.strided]
    if unusable:
        name = unusable[0]
        raise UserError(f"the checkpoint's {name} ({state[name].dtype}) is no dense floating-point tensor")
    storages = {v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in state.values()}
    if sum(v.numel() * v.element_size() for v in state.values()) > sum(storages.values()):
        raise UserError("the checkpoint's tensors share their memory; wanted values of its own for each")
