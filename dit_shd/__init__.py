"""dit_shd: distil diffusion transformers through their attention (Squeezing-Heads Distillation, arXiv 2502.07436)."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what a type checker and an editor see; _HOME says the same to Python
    from dit_shd.attention.capture import Capture
    from dit_shd.attention.recording.attach import attach_processors, capture
    from dit_shd.attention.recording.processors import SHDAttnProcessor
    from dit_shd.core.plugins import trust
    from dit_shd.diffusion.sampler import sample
    from dit_shd.distillation.losses.shd import SHD
    from dit_shd.evaluation.figures import evaluate
    from dit_shd.models.families.dit import DiT
    from dit_shd.models.families.mdt import MDTv2
    from dit_shd.models.loading import load
    from dit_shd.squeezing.divergence import attention_kl
    from dit_shd.squeezing.squeeze import Squeeze, squeeze
    from dit_shd.training.runs import train

    __version__: str

_HOME = {
    "Capture": "dit_shd.attention.capture",
    "capture": "dit_shd.attention.recording.attach",
    "attach_processors": "dit_shd.attention.recording.attach",
    "SHDAttnProcessor": "dit_shd.attention.recording.processors",
    "Squeeze": "dit_shd.squeezing.squeeze",
    "squeeze": "dit_shd.squeezing.squeeze",
    "attention_kl": "dit_shd.squeezing.divergence",
    "SHD": "dit_shd.distillation.losses.shd",
    "DiT": "dit_shd.models.families.dit",
    "MDTv2": "dit_shd.models.families.mdt",
    "load": "dit_shd.models.loading",
    "train": "dit_shd.training.runs",
    "sample": "dit_shd.diffusion.sampler",
    "evaluate": "dit_shd.evaluation.figures",
    "trust": "dit_shd.core.plugins",
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
    "evaluate",
    "load",
    "sample",
    "squeeze",
    "train",
    "trust",
]


if not TYPE_CHECKING:  # a checker is to find a name that is misspelt

    def __getattr__(name: str) -> object:
        """Import the public names when they are first asked for (PEP 562): `import dit_shd` itself loads nothing."""
        if name == "__version__":
            return _version()
        if name in _HOME:
            return getattr(importlib.import_module(_HOME[name]), name)
        raise AttributeError(f"module 'dit_shd' has no attribute '{name}'")


def __dir__() -> list[str]:
    """The public names, also those that nobody has asked for yet: completion works without loading anything."""
    return sorted({*globals(), *__all__, "__version__"})


def _version() -> str:
    """The version of the installed package, which is the tag that it was built of."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("dit_shd")
    except PackageNotFoundError:  # a source tree that is not installed
        return "0+unknown"
