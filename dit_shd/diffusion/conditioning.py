"""What tasks of class-conditional latents have in common: dropped labels, masked passes, models that fit the data."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dit_shd.core.errors import UserError
from dit_shd.core.rng import Draws
from dit_shd.data.datasets import Dataset
from dit_shd.diffusion.denoiser import NO_LABEL, Denoiser
from dit_shd.models import loading
from dit_shd.models.blocks import forward_parameters

PASSES = ("plain", "masked")
MASKED = PASSES[1]
"""The names of the passes of a step, and of the one with masked tokens."""
SPREAD = 0.2
"""By how much more than the ratio a step may mask."""


@dataclass(frozen=True)
class Conditioning:
    """How a step's labels are dropped and its tokens masked; a pass draws both for itself.

    Args:
        label_dropout: Share of labels dropped, for guidance.
        mask_ratio: A share of tokens, drawn once a step from here to SPREAD more, is hidden in the masked pass (MDT,
            arXiv 2303.14389); None for no such pass.

    Raises:
        UserError: A share out of its range.
    """

    label_dropout: float
    mask_ratio: float | None

    def __post_init__(self) -> None:
        for key, high in (("label_dropout", 1), ("mask_ratio", 1 - SPREAD)):
            value = getattr(self, key)
            if value is not None and not 0 <= value <= high:
                raise UserError(f"task.{key}: wanted a number from 0 to {high:g}, found {value}")

    @property
    def passes(self) -> tuple[str, ...]:
        """The passes of a step, in order."""
        return PASSES[:1] if self.mask_ratio is None else PASSES

    def labels(self, draws: Draws, name: str, labels: Tensor) -> Tensor:
        """The labels [b] of a pass, NO_LABEL where they are dropped."""
        return torch.where(draws.uniform(f"label/{name}") < self.label_dropout, NO_LABEL, labels)

    def keep(self, draws: Draws, name: str, tokens: int) -> Tensor | None:
        """The kept token indices [b,kept] of a pass, sorted; None where all are kept."""
        if name != MASKED:
            return None
        assert self.mask_ratio is not None
        ratio = self.mask_ratio + SPREAD * draws.scalar("mask ratio")
        ranks = draws.uniform("mask", (tokens,))
        return ranks.argsort(dim=1)[:, : _kept(tokens, ratio)].sort(dim=1).values

    def example_keep(self, name: str, tokens: int, images: int, device: torch.device) -> Tensor | None:
        """Token indices as many as `keep` gives on average [b,kept]."""
        if name != MASKED:
            return None
        assert self.mask_ratio is not None
        kept = _kept(tokens, self.mask_ratio + SPREAD / 2)
        return torch.arange(kept, device=device).expand(images, -1).contiguous()

    def check_model(self, role: str, model: nn.Module) -> None:
        """Refuse a model without a masked pass where there is one.

        Raises:
            UserError: It has none.
        """
        if self.mask_ratio is not None and "keep" not in forward_parameters(model):
            raise UserError(
                f"task.mask_ratio: the {role} ({type(model).__name__}) has no masked pass; set task.mask_ratio=null"
            )

    def check_tokens(self, role: str, model: nn.Module, tokens: int) -> None:
        """Refuse a model of other tokens than the student's where a pass hides some of them.

        Args:
            role: Of the model, for the message.
            model: Class-conditional.
            tokens: The student's n.

        Raises:
            UserError: Naming both numbers.
        """
        count = Denoiser(model).tokens
        if MASKED in self.passes and count != tokens:
            raise UserError(
                f"task.mask_ratio: hides the same tokens of both models, and the {role} has {count}, the student "
                f"{tokens}; set task.mask_ratio=null, or give both one patch_size"
            )


def check_labels(dataset: Dataset, labels: Tensor) -> None:
    """Refuse labels [b] that are of no class of the data: a model may take one of them for "no class".

    Raises:
        UserError: Naming the first of them.
    """
    highest = max(dataset.classes - 1, 0)  # without classes all are 0
    wrong = labels[(labels < 0) | (labels > highest)]
    if len(wrong):
        raise UserError(
            f"data: {type(dataset).__name__} says that it has {dataset.classes} classes, so wanted labels from 0 to "
            f"{highest}, found {int(wrong[0])}"
        )


def check_conditional(role: str, model: nn.Module) -> None:
    """Refuse a model that does not denoise square latents by class.

    Raises:
        UserError: It is of another kind.
    """
    reason = loading.why_not_conditional(model)
    if reason is not None:
        raise UserError(f"{role}: {reason}")


def check_shape(words: str, wanted: tuple[int, ...], dataset: Dataset) -> None:
    """Refuse data of another shape than a model takes.

    Args:
        words: How the error begins: who takes them.
        wanted: Of a sample, (c, y, x).
        dataset: The data.

    Raises:
        UserError: Naming both shapes.
    """
    shape = tuple(dataset.shape)
    if shape != wanted:
        last = "; channels come first in float latents, [n,c,y,x]" if shape == (*wanted[1:], wanted[0]) else ""
        raise UserError(f"{words} latents of shape {wanted}, the data's are {shape}{last}")


def check_fit(role: str, model: nn.Module, dataset: Dataset) -> None:
    """Refuse a model of other latents or fewer classes than the data's.

    Raises:
        UserError: Naming both shapes or both numbers.
    """
    denoiser = Denoiser(model)
    check_shape(f"{role}: takes", denoiser.shape, dataset)
    known = denoiser.model.config
    classes = known.get("num_classes", known.get("num_embeds_ada_norm", dataset.classes))
    if classes < dataset.classes:
        raise UserError(f"{role}: knows {classes} classes, the data has {dataset.classes}")


def _kept(tokens: int, ratio: float) -> int:
    return max(1, int(tokens * (1 - ratio)))
