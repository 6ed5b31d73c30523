"""How a class-conditional model is called: the one place that knows its arguments."""

from dataclasses import dataclass
from operator import index
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn

from dit_shd.core.errors import UserError
from dit_shd.core.precision import dtype_of
from dit_shd.diffusion.objectives import split
from dit_shd.models.prediction import convention_of
from dit_shd.models.shape import shape_of

NO_LABEL = -1
"""Stands for "no class" in labels; each model has its own number for that."""
_keeping_labels: WeakSet[nn.Module] = WeakSet()


@dataclass(frozen=True)
class Denoiser:
    """A class-conditional model, ours or of diffusers: all are called alike."""

    model: Any

    @property
    def channels(self) -> int:
        return shape_of(self.model).channels

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of the latents it takes [c,y,x]."""
        return shape_of(self.model).latents

    @property
    def tokens(self) -> int:
        """How many a pass over all of them has: n."""
        return shape_of(self.model).tokens

    @property
    def classes(self) -> int:
        """How many; that number is also its label for "none"."""
        return shape_of(self.model).classes

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor, keep: Tensor | None = None) -> Tensor:
        """The model's output [b, c or 2c, y, x].

        Args:
            x_t: Noised latents [b,c,y,x].
            t: Timesteps [b], or times in the model's own unit.
            labels: Classes [b], NO_LABEL for none.
            keep: Kept token indices [b,kept] of a masked pass, for models that have one.
        """
        keep_labels(self.model)
        masked = {} if keep is None else {"keep": keep}
        labels = torch.where(labels == NO_LABEL, self.classes, labels)
        x_t = x_t.to(dtype_of(self.model) or x_t.dtype)  # a teacher may be held in bfloat16
        return self.model(x_t, t, class_labels=labels, return_dict=False, **masked)[0]

    def predict(self, x_t: Tensor, time: Tensor, labels: Tensor, keep: Tensor | None = None) -> Tensor:
        """What the model predicts in float32, called in the convention that its config names.

        Args:
            x_t: Noised latents [b,c,y,x].
            time: Timesteps [b]; of a model of velocities shares of noise [b].
            labels: Classes [b], NO_LABEL for none.
            keep: As in a call.

        Returns:
            Noise, perhaps with a variance [b, c or 2c, y, x], or the velocity noise - x_0 [b,c,y,x]; the other half
            of a model of velocities is left out: SiT has the variance half of DiT and does not use it.

        Raises:
            UserError: The output has another shape, as of a model of one's own.
        """
        convention = convention_of(self.model)
        output = self(x_t, time if convention is None else convention.time(time), labels, keep).float()
        b, c, *sides = x_t.shape
        if output.shape not in ((b, c, *sides), (b, 2 * c, *sides)):
            raise UserError(
                f"{type(self.model).__name__}: wanted an output of the shape of its latents {list(x_t.shape)}, or of "
                f"twice their channels, found {list(output.shape)}"
            )
        return output if convention is None else convention.velocity(split(output, c)[0])


def keep_labels(model: nn.Module) -> None:
    """Let a model use the labels that it is given.

    In training diffusers' DiT would drop some by itself, in every block others; tasks do (label_dropout).
    """
    if model in _keeping_labels:
        return
    for module in model.modules():
        if type(module).__name__ == "LabelEmbedding":
            vars(module)["dropout_prob"] = 0.0
    _keeping_labels.add(model)


def known_classes(model: nn.Module) -> list[int]:
    """The classes that a model has learned: those that its config names, or all."""
    shape = shape_of(model)
    names = shape.class_names
    return [i for i in range(shape.classes) if names is None or (i < len(names) and names[i] is not None)]


def class_numbers(labels: Any) -> list[int] | int:  # noqa: ANN401
    """Classes as Python's integers; one or several, of NumPy and of PyTorch too.

    Raises:
        UserError: They are no integers.
    """
    try:
        return [index(label) for label in labels] if np.ndim(labels) else index(labels)
    except (TypeError, ValueError) as error:
        raise UserError(f"labels: wanted classes (integers), random or balanced, found {str(labels)[:60]}") from error
