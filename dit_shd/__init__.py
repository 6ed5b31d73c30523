"""dit_shd: distil diffusion transformers through their attention (Squeezing-Heads Distillation, arXiv 2502.07436)."""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Capture": "dit_shd.attention",
    "capture": "dit_shd.attention",
    "attach_processors": "dit_shd.attention",
    "SHDAttnProcessor": "dit_shd.attention",
    "Squeeze": "dit_shd.squeezing",
    "squeeze": "dit_shd.squeezing",
    "attention_kl": "dit_shd.divergence",
    "SHD": "dit_shd.losses.shd",
    "DiT": "dit_shd.models",
    "MDTv2": "dit_shd.models",
}
__all__ = [
    "SHD",
    "Capture",
    "DiT",
    "MDTv2",
    "SHDAttnProcessor",
    "Squeeze",
    "attach_processors",
    "attention_kl",
    "capture",
    "squeeze",
]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first asked for (PEP 562): `import dit_shd` itself loads nothing."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'dit_shd' has no attribute '{name}'")
