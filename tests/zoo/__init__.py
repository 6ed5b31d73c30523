"""A tiny random model of every transformer class in diffusers: what the capture of attention is tried on.

`ENTRIES` is the table, by class name; `build` and `forward` make and run a model. Sizes are ours: about four heads
of width 8, two blocks of every kind that a class has, at most about 64 tokens.
"""

import importlib
import inspect
import pkgutil
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn

from . import audio, image, joint, packed, video, wan
from .entry import Entry

VERSION = "0.42.1"
"""The diffusers whose classes the table knows in full."""

__all__ = ["ENTRIES", "UNTRIED", "Entry", "build", "classes", "draw", "forward"]

FAMILIES = image, joint, video, wan, packed, audio
ENTRIES: dict[str, Entry] = {name: entry for family in FAMILIES for name, entry in family.ENTRIES.items()}

UNTRIED: dict[str, str] = {}
"""Classes without an entry, and why."""


@cache
def classes() -> dict[str, type[nn.Module]]:
    """Every transformer class of the installed diffusers, by name: the models of diffusers.models.transformers."""
    import diffusers.models.transformers as package
    from diffusers.models.modeling_utils import ModelMixin

    found: dict[str, type[nn.Module]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for name, value in vars(module).items():
            if inspect.isclass(value) and issubclass(value, ModelMixin) and value.__module__ == module.__name__:
                found[name] = value
    return found


def build(name: str) -> nn.Module:
    """The model of an entry, the same at every call, in eval mode.

    Linear layers are drawn with variance 1 / fan-in, so that signals and attention logits are of the order of one;
    other parameters that start at zero (gates, modulations) or as unwritten memory are drawn too, small.
    """
    model_class = classes()[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)  # unwritten memory becomes nan
        try:
            model = model_class(**ENTRIES[name].config)
        except TypeError as error:
            if Version(diffusers.__version__) < Version("0.42"):
                pytest.skip(f"this diffusers has another {name} ({error})")
            raise
        finally:
            torch.use_deterministic_algorithms(before)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for p in model.parameters():
            if not p.isfinite().all() or not p.any():
                nn.init.normal_(p, std=0.1)
    return model.eval()


def draw(name: str, seed: int = 0) -> dict[str, Any]:
    """Inputs of an entry's forward, the same for the same seed."""
    entry, known = ENTRIES[name], inspect.signature(classes()[name].forward).parameters
    older = {key: value for key, value in entry.older.items() if key in known}
    return entry.inputs(torch.Generator().manual_seed(seed)) | older


def forward(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """The first tensor of the model's output."""
    return first(model(**inputs))


def first(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    return first(next(iter(output.values())) if isinstance(output, dict) else output[0])
