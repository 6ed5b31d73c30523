"""DiffKD: the student's features are taken for noisy ones of the teacher's, and denoised before the comparison."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dit_shd.core import rng
from dit_shd.core.errors import UserError
from dit_shd.distillation.features import features, mean_token, token_mean, wide
from dit_shd.distillation.losses import Layer, LayerLoss, Reads, Term, Weight
from dit_shd.distillation.projectors import projected
from dit_shd.tasks import Batch

LEVELS = 1000
"""Steps of the diffusion of features; cos^2 of the angle is the share of the signal."""
START = 500
"""The step at which the student's features are taken to be."""


class DiffKD(LayerLoss):
    """Sum over layers of MSE(denoised F_s, z_t) + MSE(noise) + MSE(autoencoder) (DiffKD, arXiv 2305.15712).

    z_t = E(F_t) is the teacher's block in a space of `bottleneck` channels, with a linear autoencoder E, D that is
    trained by MSE(D(E(F_t)), F_t); without a bottleneck z_t = F_t and there is no such term. A small denoiser is
    trained to predict the noise in z_t (without a gradient to E). A linear map brings F_s to the width of z_t, a
    learned share of noise for each sample is mixed in, and the denoiser takes it from step 500 of 1000 to 0 in `steps`
    DDIM steps; the result is compared with z_t. Our choices: the denoiser works on single tokens (two residual
    bottlenecks with the time added), since block outputs need not be a grid, and the schedule is the cosine. Noise is a
    function of seed, step and image: copies of an image in one batch (`repeats` of classification) have the same. The
    backward computes each step of the denoiser once more, so that only the features between the steps are kept.

    Args:
        weight: Factor of the loss; {step: factor} for a schedule, in YAML also {20%: factor}.
        passes: Of the task, in which it applies.
        layers: `last`, `sections`, `proportional`, or a map {student block: teacher block}.
        bottleneck: Channels of z; none for the teacher's width without an autoencoder.
        steps: Of DDIM; 5 in the paper.
        seed: Of the noise; in a config the run's.
    """

    reads = frozenset({Reads.HIDDEN})
    learns = True
    paper = "arXiv 2305.15712"

    def __init__(
        self,
        weight: Weight = 1.0,
        passes: Sequence[str] | None = ("plain",),
        layers: str | dict[str, str] = "last",
        bottleneck: int | None = None,
        steps: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__(weight, passes, layers)
        if steps < 1 or (bottleneck is not None and bottleneck < 1):
            raise UserError(f"losses.diffkd: wanted steps and bottleneck of 1 or more, found {steps} and {bottleneck}")
        self.bottleneck, self.steps, self.seed = bottleneck, steps, seed

    def make_projector(self, student: Layer, teacher: Layer) -> nn.Module:
        """What one pair of blocks learns."""
        s, t = features("diffkd", student, teacher)
        with torch.device(s.device):
            return _Parts(s.shape[2], t.shape[2], self.bottleneck)

    def pair(self, student: Layer, teacher: Layer, batch: Batch | None) -> Term:
        """The three errors of one pair of blocks [b]."""
        s, t = features("diffkd", student, teacher)
        parts: _Parts = self.projector_of(student)
        t = wide(t)
        z = parts.encode(t)
        target = z.detach()
        added, mixed, level = self._draws(student.name, target, batch)
        signal, sigma = (x[:, None, None] for x in _rates(level))
        noise = _recomputed(parts, signal * target + sigma * added, level)
        denoised = self._denoised(parts, parts.noisy(wide(projected(parts.align, s)), mixed, batch))
        errors = {
            "features": (denoised - target).square().mean(2),
            "denoiser": (noise - added).square().mean(2),
        }
        if self.bottleneck is not None:
            errors["autoencoder"] = (parts.decode(z) - t).square().mean(2)
        terms = {name: token_mean(error, batch) for name, error in errors.items()}
        return Term(torch.stack(list(terms.values())).sum(0), {k: v.detach().mean() for k, v in terms.items()})

    def _draws(self, layer: str, like: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor, Tensor]:
        """Noise for the teacher's and for the student's features [b,n,e], and steps [b]."""
        step, indices = (0, list(range(len(like)))) if batch is None else (batch.step, batch.indices.tolist())
        noise = rng.normal(self.seed, f"diffkd/{layer}", step, indices, (2, *like.shape[1:])).to(like)
        level = (rng.uniform(self.seed, f"diffkd/level/{layer}", step, indices) * LEVELS).to(like.device, like.dtype)
        return noise[:, 0], noise[:, 1], level.floor()

    def _denoised(self, parts: "_Parts", x: Tensor) -> Tensor:
        """DDIM without noise (arXiv 2010.02502, eq. 12) from START to 0."""
        levels = torch.linspace(START, 0, self.steps + 1, device=x.device, dtype=x.dtype).round()
        for now, then in pairwise(levels):
            (signal, sigma), (signal_then, sigma_then) = _rates(now), _rates(then)
            noise = _recomputed(parts, x, now.expand(len(x)))
            x = signal_then * (x - sigma * noise) / signal + sigma_then * noise
        return x


def _recomputed(parts: "_Parts", x: Tensor, level: Tensor) -> Tensor:
    """The denoiser's noise, of which the backward keeps x alone."""
    return checkpoint(parts.denoise, x, level, use_reentrant=False, preserve_rng_state=False)


def _rates(level: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of signal and noise at steps 0 .. 999: cos and sin of an angle from 0 to just below pi / 2."""
    angle = level / LEVELS * (math.pi / 2)
    return angle.cos(), angle.sin()


class _Parts(nn.Module):
    """Alignment, noise adapter, autoencoder and denoiser of one pair of blocks."""

    def __init__(self, student: int, teacher: int, bottleneck: int | None):
        super().__init__()
        width = bottleneck or teacher
        self.align = nn.Linear(student, width)
        self.share = nn.Linear(width, 1)
        self.encode = nn.Identity() if bottleneck is None else nn.Linear(teacher, width)
        self.decode = nn.Identity() if bottleneck is None else nn.Linear(width, teacher)
        inside = max(1, width // 4)
        self.time = nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inside), nn.SiLU(), nn.Linear(inside, width))
            for _ in range(2)
        )
        self.out = nn.Linear(width, width)

    def noisy(self, x: Tensor, noise: Tensor, batch: Batch | None) -> Tensor:
        """Features [b,n,e] with a learned share of noise mixed in, one for each sample."""
        share = self.share(mean_token(x, batch)).sigmoid()[:, None]
        return share * x + (1 - share) * noise

    def denoise(self, x: Tensor, level: Tensor) -> Tensor:
        """The noise in features [b,n,e] at steps [b]."""
        time = self.time(torch.stack(_rates(level), -1))[:, None]
        for block in self.blocks:
            x = x + block(x + time)
        return self.out(x)
