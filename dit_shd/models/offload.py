"""Teachers larger than a GPU's memory: diffusers' group offloading brings each block there while it runs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dit_shd.core.errors import UserError, error_line
from dit_shd.models.quantization import CONFIG

OFFLOADED = "dit_shd_offloaded"
"""Attribute of a model whose weights come to a device block by block: that device."""


def offload_blocks(model: nn.Module, device: torch.device) -> None:
    """Keep a model's weights in main memory; a block is copied to the device before it runs, the next one meanwhile.

    Args:
        model: A model of diffusers, frozen.
        device: Where it computes.

    Raises:
        UserError: Diffusers cannot offload its class.
    """
    enable: Any = getattr(model, "enable_group_offload", None)
    if enable is None:
        raise UserError(f"teacher_offload: wanted a model of diffusers, found a {type(model).__name__}")
    try:
        enable(device, torch.device("cpu"), "block_level", 1, use_stream=device.type == "cuda")
    except Exception as error:  # of diffusers, for classes that it cannot divide
        raise UserError(f"teacher_offload: {type(model).__name__} cannot be ({error_line(error, 200)})") from error
    setattr(model, OFFLOADED, device)


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
