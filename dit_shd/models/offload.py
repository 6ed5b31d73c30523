"""Teachers larger than a GPU's memory: diffusers' group offloading brings each block there while it runs."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dit_shd.core.errors import UserError, error_line
from dit_shd.models.blocks import named_blocks
from dit_shd.models.quantization import CONFIG

OFFLOADED = "dit_shd_offloaded"
"""Attribute of a model whose weights come to a device block by block: that device."""
HOOK = "_diffusers_hook"
"""Attribute that diffusers gives to a module that it brings to a device."""


def offload_blocks(model: nn.Module, device: torch.device) -> None:
    """Keep a model's weights in main memory; a block is copied to the device before it runs, the next one meanwhile.

    What is in no block is there while the whole model runs.

    Args:
        model: Of diffusers, timm or transformers, frozen.
        device: Where it computes.

    Raises:
        UserError: Diffusers cannot offload its class, or blocks share weights.
    """
    enable: Any = getattr(model, "enable_group_offload", None)
    if enable is None:
        raise UserError(f"teacher_offload: wanted a model of diffusers, found a {type(model).__name__}")
    members = named_blocks(model)
    if shared := _shared(model, members):
        raise UserError(
            f"teacher_offload: wanted blocks of weights of their own, found {shared} of a {type(model).__name__} in "
            "two places; teacher_offload=no"
        )
    try:
        with _lists_as_children(model, members):
            enable(device, torch.device("cpu"), "block_level", 1, use_stream=device.type == "cuda")
    except Exception as error:  # of diffusers, for classes that it cannot divide
        raise UserError(f"teacher_offload: {type(model).__name__} cannot be ({error_line(error, 200)})") from error
    if whole := [name for name, block in members.items() if not hasattr(block, HOOK)]:
        raise UserError(
            f"teacher_offload: diffusers does not divide a {type(model).__name__} into its blocks ({whole[0]}); "
            "teacher_offload=no"
        )
    setattr(model, OFFLOADED, device)


@contextmanager
def _lists_as_children(model: nn.Module, members: Mapping[str, nn.Module]) -> Generator[None]:
    """Let diffusers, which divides lists that are a model's children alone, find those that lie deeper in the block.

    Its own `block_modules` leads there, too, but lets go of each module on the way when that has run: with an embedding
    that a head outside shares. And it refuses streams.

    Args:
        model: Whose children the lists are to be; that all else is parts of it, diffusers finds by itself.
        members: Its blocks, by name.
    """
    lists = dict.fromkeys(name.rpartition(".")[0] for name in members)
    if not any("." in name for name in lists):
        yield
        return
    children = [(name, model.get_submodule(name)) for name in lists]
    model.named_children = lambda: iter(children)  # of this model alone, over its class's method
    try:
        yield
    finally:
        del model.named_children


def _shared(model: nn.Module, members: Mapping[str, nn.Module]) -> str | None:
    """A weight of a block that another block, or what is in none, has as well: who has run would take it away."""
    places: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        place = next((block for block in members if name.startswith(f"{block}.")), "")
        if places.setdefault(id(parameter), place) != place:
            return name
    return None


def is_offloaded(model: nn.Module) -> bool:
    """Whether a model's weights come to its device block by block."""
    return getattr(model, OFFLOADED, None) is not None


def device_of(model: nn.Module) -> torch.device:
    """Where a model computes, and its inputs are to be."""
    return getattr(model, OFFLOADED, None) or next(model.parameters()).device


def moved(model: nn.Module, device: torch.device) -> nn.Module:
    """A model on a device; one that is offloaded, or was quantised there, stays as it is."""
    settings: Any = getattr(model, "config", {})
    quantised = isinstance(settings, Mapping) and CONFIG in settings
    return model if quantised or is_offloaded(model) else model.to(device)
