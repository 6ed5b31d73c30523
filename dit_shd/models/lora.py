"""Low-rank adapters (LoRA, arXiv 2106.09685) by peft: a student's weights stay, and what is trained is small.

Where they stand is a student's linear maps; a merged student is of its plain class again.
"""

import json
import warnings
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from dit_shd.core.config import option
from dit_shd.core.errors import UserError
from dit_shd.core.installation import require
from dit_shd.core.rng import kept_generators
from dit_shd.models.blocks import named_blocks

NOTE = "dit_shd_lora"
"""Attribute of a model with adapters: their settings as JSON, from which its like is built without weights."""

CONV1D = "transformers.pytorch_utils.Conv1D"
"""A linear map whose weight is transposed; transformers need not be installed."""


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters in the place of the student's own weights."""

    rank: int = option(
        0, "of the adapters that are trained, the student's weights being frozen; 0: none", range=(0, 2**14)
    )
    alpha: float | None = option(None, "adapters are scaled by alpha / rank; empty: by 1", range=(1e-6, 1e6))
    targets: list[str] = option(
        [],
        "linear maps by their names or the ends of them (to_q, to_out.0); empty: every one of the blocks (no stacked "
        "weights of experts)",
    )


def add_lora(model: nn.Module, lora: Lora, seed: int = 0) -> None:
    """Freeze a model, and give linear maps of it adapters, which change nothing yet; none where their rank is 0.

    Args:
        model: Perhaps without memory.
        lora: Rank and places, checked.
        seed: Of their first weights; the random state of the process stays as it was.
    """
    if not lora.rank:
        return
    from peft import LoraConfig, inject_adapter_in_model

    scale: Any = lora.rank if lora.alpha is None else lora.alpha
    config = LoraConfig(r=lora.rank, lora_alpha=scale, target_modules=adapted(model, lora))
    model.requires_grad_(False)
    device = next(model.parameters()).device
    with kept_generators(device), device, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out is set")  # of GPT-2's maps, and peft then does what is right
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    setattr(model, NOTE, json.dumps(asdict(lora)))


def check_lora(model: nn.Module, lora: Lora) -> None:
    """Refuse names that fit no linear map, before anything is written.

    Args:
        model: Without adapters.
        lora: Rank and places.

    Raises:
        UserError: The package peft is not installed, or no linear map has such a name, or there is none.
    """
    if not lora.rank:
        return
    require(("peft",), "lowbit", "lora")
    names = linear_maps(model)
    if not names:
        raise UserError(
            f"lora.rank: a {type(model).__name__} has no linear maps in blocks, where adapters stand; lora.rank=0"
        )
    for target in lora.targets:
        if not any(_ends_in(name, target) for name in names):
            ends = dict.fromkeys(name.partition(".")[2].partition(".")[2] for name in names)
            raise UserError(
                f"lora.targets: no linear map of the student's blocks ends in {target}; there are {', '.join(ends)}"
            )


def remark(model: nn.Module, lora: Lora) -> str | None:
    """A line where adapters have keys and no rank, or most of the blocks' weights are in no linear map; else None.

    That is so of stacked experts.
    """
    if not lora.rank:
        named = [f"lora.{key}" for key in ("alpha", "targets") if getattr(lora, key)]
        return f"{named[0]}: is of adapters, and there are none: lora.rank=0 trains all weights" if named else None
    blocks = named_blocks(model).values()
    whole = sum(p.numel() for block in blocks for p in block.parameters())
    reached = sum(model.get_submodule(name).weight.numel() for name in linear_maps(model))  # type: ignore[union-attr]
    if whole <= 2 * reached:
        return None
    return (
        f"lora: {1 - reached / whole:.0%} of the blocks' weights are in no linear map (stacked experts?) and stay as "
        "they are, without adapters"
    )


@contextmanager
def idle_maps(model: nn.Module, lora: Lora) -> Generator[list[str]]:
    """Adapted linear maps that did not run in the block, known at its end; who reads weights passes adapters by."""
    idle = dict.fromkeys(adapted(model, lora) if lora.rank else ())
    names = list[str]()
    with ExitStack() as hooks:
        for name in idle:
            module = model.get_submodule(name)
            hooks.enter_context(module.register_forward_pre_hook(lambda *_, name=name: idle.pop(name, None)))
        yield names
        names += idle


def adapted(model: nn.Module, lora: Lora) -> list[str]:
    """The linear maps that are given adapters, by their whole names: the ends that a user names may fit others, too."""
    names = linear_maps(model)
    return [name for name in names if not lora.targets or any(_ends_in(name, target) for target in lora.targets)]


def _ends_in(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def linear_maps(model: nn.Module) -> list[str]:
    """The names of the linear maps in a model's blocks; GPT-2's are of a class of transformers, Conv1D."""
    return [
        f"{block}.{name}"
        for block, module in named_blocks(model).items()
        for name, part in module.named_modules()
        if type(part) is nn.Linear or f"{type(part).__module__}.{type(part).__name__}" == CONV1D
    ]


def merge_lora(model: nn.Module) -> None:
    """Add what the adapters have learned to the weights, and take them off; a model without any stays as it is."""
    if not hasattr(model, NOTE):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    for attribute in (NOTE, "peft_config"):
        delattr(model, attribute)
    model.requires_grad_(True)


def note_of(model: nn.Module) -> str:
    """The settings of a model's adapters as JSON; empty where it has none."""
    return str(getattr(model, NOTE, ""))


def add_noted(model: nn.Module, note: str) -> None:
    """Give a model the adapters of another.

    Args:
        model: Of the same class and config, perhaps without memory.
        note: As note_of gives it.
    """
    if note:
        values: dict[str, Any] = json.loads(note)
        add_lora(model, Lora(**values))
