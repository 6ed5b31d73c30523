"""A teacher's attention, its squeezed maps, and the divergence of students from them, as numbers.

Alphabet: b batch, h teacher heads, g student heads, w tokens along one side of the image (n = w w).
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dit_shd.attention.capture import Captures
from dit_shd.attention.recording.attach import capture
from dit_shd.core import rng
from dit_shd.data.datasets import Dataset
from dit_shd.diffusion.denoiser import Denoiser
from dit_shd.diffusion.schedule import Schedule
from dit_shd.distillation.layer_map import LayerMap, layer_map
from dit_shd.squeezing.divergence import attention_kl
from dit_shd.squeezing.plans import Plan
from dit_shd.squeezing.squeeze import squeeze
from dit_shd.tasks.diffusion import NoisyBatch


@dataclass(frozen=True, eq=False)
class AttentionRows:
    """One query token's rows of attention in one layer, in the layout of the image."""

    layer: str
    teacher: np.ndarray
    """[h,w,w]"""
    squeezed: np.ndarray
    """[g,w,w], the squeezed maps A~."""
    students: dict[str, np.ndarray]
    """[g,w,w] of each student."""
    weights: np.ndarray
    """[h], the weight of each teacher head in its student head."""
    plan: Plan


@dataclass(frozen=True, eq=False)
class LayerSqueeze:
    """Statistics of squeezing one teacher layer over a batch, and the students' divergence from it."""

    layer: str
    alpha: np.ndarray
    """[b,merges]"""
    t: np.ndarray
    """[b], timesteps"""
    clamped: float
    """Share of alphas outside of [0, 1] before clamping."""
    residual: float
    """||A~ X - sum A_i X_i|| / ||sum A_i X_i||, mean over samples and groups."""
    divergence: dict[str, float]
    """KL(A~ || B) of each student B, mean over samples and rows, summed over heads."""


def noised(dataset: Dataset, index: int, t: int, seed: int) -> NoisyBatch:
    """One sample of a dataset at one timestep, with its label, as a batch of one."""
    sample = dataset.batch(np.array([index]), rng.Draws(seed, 0, [0], 1))
    x_0, labels = sample["latents"], sample["labels"]
    noise = rng.normal(seed, "inspect", 0, [index], dataset.shape)
    step = torch.tensor([t])
    x_t = Schedule.linear().add_noise(x_0, noise, step)
    return NoisyBatch("plain", 0, torch.tensor([index]), x_0, noise, x_t, step, labels)


def inkiest_token(x_0: Tensor, window: int) -> int:
    """The token with the brightest patch in one image [c,y,x], which is not background."""
    patch = x_0.shape[-1] // window
    return int(torch.nn.functional.avg_pool2d(x_0.mean(0)[None], patch).flatten().argmax())


@torch.no_grad()
def attention_rows(
    teacher: nn.Module,
    students: Mapping[str, nn.Module],
    batch: NoisyBatch,
    token: int,
    layers: Sequence[str] | None = None,
    how: LayerMap = "sections",
) -> list[AttentionRows]:
    """The rows of one query token in the students' layers.

    Args:
        teacher: The teacher.
        students: By name, all with the same layers and heads.
        batch: A batch of one sample.
        token: The query token.
        layers: Names of the students' layers; all if None.
        how: The layer map.
    """
    teacher_captures, student_captures = _captures(teacher, students, batch)
    first = next(iter(student_captures.values()))
    row = slice(token, token + 1)
    results = []
    for layer, teacher_layer in layer_map(list(teacher_captures), list(first), how).items():
        if layers is not None and layer not in layers:
            continue
        squeezed = squeeze(teacher_captures[teacher_layer], first[layer].heads)
        maps = teacher_captures[teacher_layer].map(row)
        results.append(
            AttentionRows(
                layer=layer,
                teacher=_square(maps),
                squeezed=_square(squeezed.mix(maps, row)),
                students={name: _square(captures[layer].map(row)) for name, captures in student_captures.items()},
                weights=squeezed.weight[0, :, 0].double().numpy(),
                plan=squeezed.plan,
            )
        )
    return results


@torch.no_grad()
def squeeze_statistics(
    teacher: nn.Module, students: Mapping[str, nn.Module], batch: NoisyBatch, how: LayerMap = "sections"
) -> list[LayerSqueeze]:
    """Alpha, clamping, residual and the students' divergence, layer by layer."""
    teacher_captures, student_captures = _captures(teacher, students, batch)
    first = next(iter(student_captures.values()))
    statistics = []
    for layer, teacher_layer in layer_map(list(teacher_captures), list(first), how).items():
        teacher_capture = teacher_captures[teacher_layer]
        squeezed = squeeze(teacher_capture, first[layer].heads)
        assert squeezed.alpha is not None
        assert squeezed.clamped is not None
        assert squeezed.residual is not None
        divergence = {
            name: float(attention_kl(teacher_capture, captures[layer], squeezed).mean())
            for name, captures in student_captures.items()
        }
        statistics.append(
            LayerSqueeze(
                layer=layer,
                alpha=squeezed.alpha.double().numpy(),
                t=batch.t.numpy(),
                clamped=float(squeezed.clamped.double().mean()) if squeezed.clamped.numel() else 0.0,
                residual=float(squeezed.residual.mean()),
                divergence=divergence,
            )
        )
    return statistics


def _captures(
    teacher: nn.Module, students: Mapping[str, nn.Module], batch: NoisyBatch
) -> tuple[Captures, dict[str, Captures]]:
    """Record one forward of every model."""
    with ExitStack() as stack:
        recorded = {name: stack.enter_context(capture(m)) for name, m in {"": teacher, **students}.items()}
        for model in (teacher, *students.values()):
            Denoiser(model)(batch.x_t, batch.t, batch.labels, batch.keep)
        copies: dict[str, Captures] = {name: dict(captures) for name, captures in recorded.items()}
    return copies.pop(""), copies


def _square(rows: Tensor) -> np.ndarray:
    """Rows [1,heads,1,n] as images [heads,w,w]."""
    heads, n = rows.shape[1], rows.shape[3]
    side = int(n**0.5)
    return rows[0, :, 0].double().reshape(heads, side, side).numpy()
