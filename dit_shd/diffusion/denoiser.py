"""How a class-conditional model is called: the one place that knows its arguments."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

NO_LABEL = -1
"""Stands for "no class" in labels; each model has its own number for that."""


@dataclass(frozen=True)
class Denoiser:
    """A class-conditional model, ours or of diffusers: all are called alike."""

    model: Any

    @property
    def channels(self) -> int:
        return self.model.config.in_channels

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the latents it takes [c,y,x]."""
        side = self.model.config.sample_size
        return (self.channels, side, side)

    @property
    def tokens(self) -> int:
        """How many a pass over all of them has: n."""
        return (self.model.config.sample_size // self.model.config.patch_size) ** 2

    @property
    def classes(self) -> int:
        """How many; that number is also its label for "none"."""
        config = self.model.config
        return config.num_classes if "num_classes" in config else config.num_embeds_ada_norm

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor, keep: Tensor | None = None) -> Tensor:
        """The model's output [b, c or 2c, y, x].

        Args:
            x_t: Noised latents [b,c,y,x].
            t: Timesteps [b], or times in the model's own unit.
            labels: Classes [b], NO_LABEL for none.
            keep: Kept token indices [b,kept] of a masked pass, for models that have one.
        """
        masked = {} if keep is None else {"keep": keep}
        labels = torch.where(labels == NO_LABEL, self.classes, labels)
        x_t = x_t.to(next(self.model.parameters()).dtype)  # a teacher may be held in bfloat16
        return self.model(x_t, t, class_labels=labels, return_dict=False, **masked)[0]


def known_classes(model: nn.Module) -> list[int]:
    """The classes that a model has learned: those that its config names, or all."""
    asked = Denoiser(model)
    names = asked.model.config.get("class_names")
    return [i for i in range(asked.classes) if names is None or (i < len(names) and names[i] is not None)]


def classes_of(model: nn.Module) -> int:
    """The number of classes of a model; that number is also its label for "none"."""
    return Denoiser(model).classes
