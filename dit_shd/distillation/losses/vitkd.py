"""ViTKD: the first blocks mimic the teacher's, and the last block generates the teacher's."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dit_shd.attention.capture import Captures
from dit_shd.core import rng
from dit_shd.core.errors import UserError
from dit_shd.distillation.features import wide
from dit_shd.distillation.losses import Forward, Layers, Loss, Needs, Reads, Term, Weight
from dit_shd.distillation.projectors import projected
from dit_shd.squeezing.cost import FLOAT, LayerCost
from dit_shd.tasks import Batch

MOST_PREFIX = 8
"""Tokens that a teacher may have more than a student's grid; more are of another grid."""
SHALLOW = 2
"""Number of first blocks that mimic the teacher's."""


class ViTKD(Loss):
    """Feature distillation of vision transformers (Yang et al., arXiv 2209.02432), on block outputs F [b,n,e].

    mimicking: sum over the first two blocks, tokens and channels of (P_i F_s - F_t)^2, P_i linear.
    generation: a learned token takes the place of a share r of the tokens of P F_s of the last block, two 3x3
    convolutions with a ReLU between run over the token grid, and the squared error to F_t of the last block is summed
    over those tokens and channels and divided by r.

    Tokens in front of the grid (class, distillation) take no part. At equal widths there are no P, as in the public
    code. Widths are those of the models' blocks. Which tokens are replaced is a function of seed, step and image: the
    same ones in copies of an image in one batch (`repeats` of classification).

    Args:
        weight: Factor of the loss; {step: factor} for a schedule, in YAML also {20%: factor}.
        passes: Of the task, in which it applies.
        mimicking: The factor of that part; the published one.
        generation: Likewise.
        mask_ratio: Share of tokens r.
        prefix_tokens: Tokens of the student in front of the grid; the teacher has all that are more than it, at most 8.
        layers: `sections`, `proportional`, or a map {student block: teacher block}.
        seed: Of the tokens that are replaced; in a config the run's.
    """

    reads = frozenset({Reads.HIDDEN})
    learns = True
    needs = frozenset({Needs.EQUAL_TOKENS})
    paper = "arXiv 2209.02432"

    def __init__(
        self,
        weight: Weight = 1.0,
        passes: Sequence[str] = ("plain",),
        mimicking: float = 3e-5,
        generation: float = 3e-6,
        mask_ratio: float = 0.5,
        prefix_tokens: int = 1,
        layers: str | dict[str, str] = "sections",
        seed: int = 0,
    ) -> None:
        super().__init__(weight, passes)
        if prefix_tokens < 0:
            raise UserError(f"losses.vitkd.prefix_tokens: wanted 0 or more, found {prefix_tokens}")
        if not 0 < mask_ratio < 1:
            raise UserError(f"losses.vitkd.mask_ratio: wanted a share above 0 and below 1, found {mask_ratio}")
        for name, factor in (("mimicking", mimicking), ("generation", generation)):
            if not 0 <= factor < math.inf:
                raise UserError(f"losses.vitkd.{name}: wanted a number of 0 or more, found {factor}")
        self.mask_ratio, self.prefix_tokens = mask_ratio, prefix_tokens
        self.factors, self.seed = (mimicking, generation), seed
        self.layers = layers
        self.parts: _Parts | None = None
        """What it learns, once the widths are known."""

    def build(self, student: Forward, teacher: Forward, batch: Batch) -> None:
        """Make what it learns, of the widths of the blocks."""
        if self.parts is None:
            s, t = self._tokens(student, teacher)[-1]
            with torch.device(s.device):
                self.parts = _Parts(s.shape[2], t.shape[2])

    def term(self, student: Forward, teacher: Forward, batch: Batch) -> Term:
        """Both parts of each sample [b], with their published factors."""
        tokens = self._tokens(student, teacher)
        widths = tokens[-1][0].shape[2], tokens[-1][1].shape[2]
        if self.parts is None or self.parts.widths != widths:
            raise UserError(
                f"losses.vitkd: has no maps of widths {widths[0]} and {widths[1]}; before the optimizer is made, call "
                "distiller.build([batch], teacher)"
            )
        shallow = [_error(projected(project, s), t).sum(1) for project, (s, t) in zip(self.parts.mimic, tokens)]
        mimicking, generation = torch.stack(shallow).sum(0), self._generation(self.parts, *tokens[-1], batch)
        value = self.factors[0] * mimicking + self.factors[1] * generation
        return Term(value, {"mimicking": mimicking.detach().mean(), "generation": generation.detach().mean()})

    def _generation(self, parts: "_Parts", student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The error of the replaced tokens [b]."""
        masked = self._masked(batch, student.shape[1]).to(student.device)
        aligned = projected(parts.align, student)
        tokens = torch.where(masked[..., None], parts.mask_token.to(aligned.dtype), aligned)
        side = math.isqrt(tokens.shape[1])
        grid = tokens.transpose(1, 2).unflatten(2, (side, side))
        generated = projected(parts.generate, grid).flatten(2).transpose(1, 2)
        return (_error(generated, teacher) * masked).sum(1) / self.mask_ratio

    def _masked(self, batch: Batch, n: int) -> Tensor:
        """Which tokens are replaced [b,n]: as many in every sample."""
        if n * self.mask_ratio < 1:
            raise UserError(
                f"losses.vitkd.mask_ratio: wanted a share of at least one of {n} tokens, found {self.mask_ratio}"
            )
        draws = rng.uniform(self.seed, "vitkd", batch.step, batch.indices.tolist(), (n,))
        return draws.argsort(1).argsort(1) >= int(n * (1 - self.mask_ratio))

    def _tokens(self, student: Forward, teacher: Forward) -> list[tuple[Tensor, Tensor]]:
        """The patch tokens of the first blocks and of the last, of student and teacher.

        Raises:
            UserError: Too few blocks, or widths that differ from block to block.
        """
        pairs = list(self.layer_map(student.hidden, teacher.hidden).items())
        if len(pairs) <= SHALLOW:
            raise UserError(f"losses.vitkd: wanted a student of more than {SHALLOW} blocks, found {len(pairs)}")
        tokens = [self._grid(student.hidden, teacher.hidden, *pair) for pair in (*pairs[:SHALLOW], pairs[-1])]
        widths = {(s.shape[2], t.shape[2]) for s, t in tokens}
        if len(widths) > 1:
            raise UserError(
                f"losses.vitkd: wanted blocks of one width in each model, found {sorted(widths)} in the first and last "
                "blocks of student and teacher"
            )
        return tokens

    def _grid(self, student: Layers, teacher: Layers, block: str, source: str) -> tuple[Tensor, Tensor]:
        """The patch tokens of two blocks.

        Raises:
            UserError: No square grid, or other token counts.
        """
        s, t = student[block].hidden, teacher[source].hidden
        assert s is not None
        assert t is not None
        n = s.shape[1] - self.prefix_tokens
        more = t.shape[1] - n  # tokens before the teacher's patches: a class token, registers
        if n < 1 or math.isqrt(n) ** 2 != n or not 0 <= more <= MOST_PREFIX or t.shape[0] != s.shape[0]:
            raise UserError(
                f"losses.vitkd: wanted a square grid of tokens behind {self.prefix_tokens} (prefix_tokens), and as "
                f"many in the teacher, found {list(s.shape)} in {block} and {list(t.shape)} in {source} of the teacher"
            )
        return s[:, -n:], t[:, -n:]

    def cost(self, teacher: Captures, student: Captures, images: int) -> LayerCost:
        """Operations of linear maps and convolutions on the tokens of attention, forward and backward."""
        if not student or self.parts is None:
            return LayerCost()
        n = next(iter(student.values())).shape[2] - self.prefix_tokens
        e, e_teacher = self.parts.widths
        linear = 0 if e == e_teacher else (SHALLOW + 1) * e * e_teacher
        products = images * n * (linear + 2 * 9 * e_teacher**2)
        return LayerCost(operations=3 * 2 * products, held=FLOAT * images * n * e_teacher * (SHALLOW + 4))


class _Parts(nn.Module):
    """The linear maps, the mask token and the convolutions.

    Args:
        student: Model width e of the student.
        teacher: Likewise of the teacher.
    """

    def __init__(self, student: int, teacher: int):
        super().__init__()
        self.widths = student, teacher
        self.mimic = nn.ModuleList(self._projector() for _ in range(SHALLOW))
        self.align = self._projector()
        self.mask_token = nn.Parameter(torch.zeros(teacher))
        self.generate = nn.Sequential(
            nn.Conv2d(teacher, teacher, 3, padding=1), nn.ReLU(), nn.Conv2d(teacher, teacher, 3, padding=1)
        )

    def _projector(self) -> nn.Module:
        student, teacher = self.widths
        return nn.Identity() if student == teacher else nn.Linear(student, teacher)


def _error(student: Tensor, teacher: Tensor) -> Tensor:
    """The squared error of each token [b,n], summed over channels; float32, where a forward was in bfloat16."""
    s = wide(student)
    return (s - teacher.to(s.dtype)).square().sum(2)
