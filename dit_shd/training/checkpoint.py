"""The files of a checkpoint: tensors by name, and whether they are as they were written."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit_shd.core.hashing import sha256
from dit_shd.models.quantization import plain_parts

MANIFEST = "manifest.json"


def damage(folder: Path) -> str | None:
    """The damage of a checkpoint, in a few words; None if it is as it was written."""
    try:
        sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(sums, dict) or "state.json" not in sums:
            return f"{MANIFEST} is damaged"
        for name, expected in sums.items():
            file = folder / Path(name).name
            if not file.is_file():
                return f"{name} is missing"
            if sha256(file) != expected:
                return f"{name} is damaged"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, RecursionError) as error:
        return f"{MANIFEST} is damaged" if isinstance(error, ValueError) else str(error)
    return None


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, by the name of its folder."""
    return int(checkpoint.name.removeprefix("step_"))


def flat(optimizer: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state_dict as tensors by name, and the rest of it as plain data.

    A state of 8 bits is its codes, scales and table, each by a name of its own.
    """
    tensors: dict[str, Tensor] = {}
    groups = [{key: _plain(value) for key, value in group.items()} for group in optimizer["param_groups"]]
    rest: dict[str, Any] = {"param_groups": groups, "state": {}}
    for parameter, values in optimizer["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                parts = plain_parts(value)
                tensors |= {f"{parameter}/{key}{':' * bool(part)}{part}": x for part, x in parts.items()}
            else:
                rest["state"][f"{parameter}/{key}"] = value
    return tensors, rest


def _plain(value: object) -> object:
    return value.item() if isinstance(value, Tensor) else value


def unflat(tensors: dict[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    """The state_dict of which `flat` made tensors and plain data.

    Args:
        tensors: The tensors, by parameter and key.
        rest: Plain data.
    """
    state: dict[Any, dict[str, Any]] = {}
    for name, value in {**tensors, **rest["state"]}.items():
        parameter, _, key = name.rpartition("/")
        state.setdefault(int(parameter) if parameter.isdecimal() else parameter, {})[key] = value
    return {"state": {name: _joined(values) for name, values in state.items()}, "param_groups": rest["param_groups"]}


def _joined(values: dict[str, Any]) -> dict[str, Any]:
    """The state of a parameter, whose states of 8 bits are made of their parts again."""
    coded = [key.removesuffix(":codes") for key in values if key.endswith(":codes")]
    if not coded:
        return values
    from torchao.optim.subclass_8bit import OptimState8bit

    joined = {key: value for key, value in values.items() if ":" not in key}
    for key in coded:
        codes, scale, table = (values[f"{key}:{part}"] for part in ("codes", "scale", "qmap"))
        joined[key] = OptimState8bit(codes, scale, table, bool(table.min() < 0), torch.float32)
    return joined
