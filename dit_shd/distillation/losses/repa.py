"""REPA: one block's tokens resemble those of a vision encoder on the clean image."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_shd.attention.capture import Captures
from dit_shd.core.errors import UserError
from dit_shd.distillation.features import token_mean, wide
from dit_shd.distillation.losses import Forward, Frozen, Loss, Reads, Term, Weight
from dit_shd.distillation.projectors import projected
from dit_shd.evaluation.features.dinov2 import MEAN, SIDE, STD, read_network
from dit_shd.squeezing.cost import FLOAT, LayerCost
from dit_shd.tasks import Batch

ENCODED = 257
"""Tokens of the encoder at 224 x 224."""


class REPA(Loss):
    """1 - cos(P(F_s), E), mean over tokens: E of a frozen DINOv2 on the clean image, P three linear maps with SiLU.

    arXiv 2410.06940. No teacher is run. The images are a field of the data [b,c,y,x] in [-1,1] (of data without an
    autoencoder: their latents) and are resized to 224 x 224; the encoder's tokens are interpolated to the student's
    grid. Without `weights` the field holds the encoder's tokens [b,n,e] themselves, computed before.

    Args:
        weight: Factor of the loss; {step: factor} for a schedule, in YAML also {20%: factor}.
        passes: Of the task, in which it applies.
        weights: DINOv2's file (Meta's or timm's); none where the field holds tokens.
        variant: Size of the network in the file.
        field: Of the data.
        depth: Of the student's block, 1 for the first; 8 in the paper.
        inside: Width inside of P.
    """

    reads = frozenset({Reads.HIDDEN})
    learns = True
    needs_teacher = False
    paper = "arXiv 2410.06940"

    def __init__(
        self,
        weight: Weight = 0.5,
        passes: Sequence[str] | None = ("plain",),
        weights: Path | None = None,
        variant: Literal["small", "base", "large", "giant"] = "base",
        field: str = "latents",
        depth: int = 8,
        inside: int = 2048,
    ) -> None:
        super().__init__(weight, passes)
        if depth < 1 or inside < 1:
            raise UserError(f"losses.repa: wanted depth and inside of 1 or more, found {depth} and {inside}")
        self.encoder = None if weights is None else Frozen(_Patches(read_network(weights, variant, "timm")[0]))
        self.field, self.depth, self.inside = field, depth, inside
        self.fields = frozenset({field})  # type: ignore[misc]
        self.project: nn.Sequential | None = None
        """P, once the widths are known."""

    def build(self, student: Forward, teacher: Forward, batch: Batch) -> None:
        """Make P, from the width of the student's block to that of the encoder."""
        if self.project is None:
            tokens = self._tokens(student)
            widths = (tokens.shape[2], self.inside, self.inside, self._target(tokens, batch).shape[2])
            with torch.device(tokens.device):
                linear = [nn.Linear(*pair) for pair in pairwise(widths)]
            self.project = nn.Sequential(linear[0], nn.SiLU(), linear[1], nn.SiLU(), linear[2])

    def term(self, student: Forward, teacher: Forward, batch: Batch) -> Term:
        """One minus the cosine of each sample [b]."""
        if self.project is None:
            raise UserError("losses.repa: has no projector yet; before the optimizer is made: distiller.build([batch])")
        tokens = self._tokens(student)
        cosine = F.cosine_similarity(wide(projected(self.project, tokens)), wide(self._target(tokens, batch)), dim=2)
        return Term(token_mean(1 - cosine, batch))

    def cost(self, teacher: Captures, student: Captures, images: int) -> LayerCost:
        """Operations of P, forward and backward; the encoder's count as two for each weight and token."""
        learned = 0 if self.project is None else sum(p.numel() for p in self.project.parameters())
        frozen = 0 if self.encoder is None else sum(p.numel() for p in self.encoder.model.parameters())
        n = next(iter(student.values())).shape[2] if student else 0
        tokens = images * n
        return LayerCost(
            operations=6.0 * tokens * learned + 2.0 * images * ENCODED * frozen, held=FLOAT * tokens * 2 * self.inside
        )

    def _tokens(self, student: Forward) -> Tensor:
        """The tokens [b,n,e] of the student's block.

        Raises:
            UserError: It has fewer blocks, or no tokens.
        """
        blocks = list(student.hidden.values())
        tokens = blocks[self.depth - 1].hidden if self.depth <= len(blocks) else None
        if tokens is None or tokens.ndim != 3:
            got = (
                f"{len(blocks)} blocks" if tokens is None else f"{list(tokens.shape)} in {blocks[self.depth - 1].name}"
            )
            raise UserError(f"losses.repa.depth: wanted tokens [b,n,e] of block {self.depth}, found {got}")
        return tokens

    def _target(self, tokens: Tensor, batch: Batch) -> Tensor:
        """The encoder's tokens [b,n,e] on the student's grid.

        Raises:
            UserError: The field holds something else, or the student's tokens are no square grid.
        """
        given, n = batch.data.get(self.field), tokens.shape[1]
        if given is None:
            raise UserError(
                f"losses.repa.field: the batch has no {self.field}; it has {', '.join(batch.data) or 'none'}"
            )
        if self.encoder is None:
            if given.ndim != 3 or given.shape[1] != n:
                raise UserError(
                    f"losses.repa.field: without weights, wanted tokens [b,{n},e] in {self.field}, found "
                    f"{list(given.shape)}"
                )
            return given
        side = math.isqrt(n)
        if side**2 != n or given.ndim != 4 or given.shape[1] not in (1, 3) or not given.is_floating_point():
            raise UserError(
                f"losses.repa.field: wanted images [b,3,y,x] in [-1,1] in {self.field} and a square grid of tokens, "
                f"found {list(given.shape)} and {n} tokens; images of latents: data with another field, or tokens "
                "computed before"
            )
        images = F.interpolate(given.expand(-1, 3, -1, -1), (SIDE, SIDE), mode="bicubic", antialias=True)
        mean, std = (torch.tensor(values, device=given.device).view(3, 1, 1) for values in (MEAN, STD))
        patches = self.encoder(((images.clamp(-1, 1) + 1) / 2 - mean) / std)
        inner = math.isqrt(patches.shape[1])
        grid = patches.transpose(1, 2).unflatten(2, (inner, inner))
        return F.interpolate(grid, (side, side), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)


class _Patches(nn.Module):
    """The patch tokens [b,n,e] of a vision transformer of timm.

    Args:
        network: The transformer.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Tokens of images [b,3,y,x], without class and register tokens."""
        network: Any = self.network
        return network.forward_features(images)[:, network.num_prefix_tokens :]
