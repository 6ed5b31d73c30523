"""A teacher's attention, its squeezed maps, and the divergence of students from them, as numbers.

Alphabet: b batch, h teacher heads, g student heads, w tokens along one side of the image (n = w w).
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dit_shd.analysis.map_sheets import LayerSheets, Sheets, extent, merged_notes, rows_of
from dit_shd.analysis.token_grids import layout
from dit_shd.attention.capture import Captures
from dit_shd.attention.recording.attach import capture
from dit_shd.core import rng
from dit_shd.data.datasets import Dataset
from dit_shd.diffusion.denoiser import Denoiser
from dit_shd.diffusion.schedule import Schedule
from dit_shd.distillation.layer_map import layer_map
from dit_shd.squeezing.divergence import attention_kl
from dit_shd.squeezing.plans import Plan
from dit_shd.squeezing.squeeze import Squeeze, squeeze
from dit_shd.tasks.diffusion import NoisyBatch


@dataclass(frozen=True, eq=False)
class LayerSqueeze:
    """Statistics of squeezing one teacher layer over a batch, and the students' divergence from it."""

    layer: str
    alpha: np.ndarray
    """[b,merges]"""
    plan: Plan
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
def model_sheets(teacher: nn.Module, students: Mapping[str, nn.Module], batches: Sequence[NoisyBatch]) -> Sheets:
    """Maps of the teacher, squeezed to the students' heads, and of the students, in the students' layers.

    Args:
        teacher: The teacher.
        students: The students, by name, all with the same layers and heads.
        batches: One sample at several timesteps.
    """
    sheets: dict[str, LayerSheets] = {}
    groups: dict[str, list[str]] = {}
    for batch in batches:
        captures, student_captures = _captures(teacher, students, batch)
        first = next(iter(student_captures.values()))
        pairs = layer_map(list(captures), list(first))
        for layer, teacher_layer in pairs.items():
            of_teacher = captures[teacher_layer]
            squeezed = squeeze(of_teacher, first[layer].heads)
            grid = layout(of_teacher.shape[2], {"hidden_states": batch.x_t})
            if layer not in sheets:
                maps = len(squeezed.group) + squeezed.heads * (1 + len(students))
                size = extent(len(pairs), len(batches), maps, *of_teacher.shape[2:])
                sheets[layer] = LayerSheets.begin(layer, *of_teacher.shape[2:], (grid, grid), size)
                groups = _groups(squeezed, list(students))
            rows = rows_of(of_teacher, sheets[layer].tokens)
            student_rows = [rows_of(layers[layer], sheets[layer].tokens) for layers in student_captures.values()]
            none = [""] * squeezed.heads
            notes = [*[""] * len(squeezed.group), *merged_notes(squeezed), *none * len(students)]
            sheets[layer].add(torch.cat([rows, squeezed.mix(rows[None])[0], *student_rows]), grid, notes)
    return Sheets([int(batch.t[0]) for batch in batches], groups, list(sheets.values()))


def _groups(squeezed: Squeeze, students: Sequence[str]) -> dict[str, list[str]]:
    """The names of all maps of a layer."""
    names = [f"head {head}" for head in range(squeezed.heads)]
    groups = {"teacher": [f"head {head}" for head in range(len(squeezed.group))], "teacher, squeezed": names}
    return groups | dict.fromkeys(students, names)


@torch.no_grad()
def squeeze_statistics(teacher: nn.Module, students: Mapping[str, nn.Module], batch: NoisyBatch) -> list[LayerSqueeze]:
    """Alpha, clamping, residual and the students' divergence, layer by layer."""
    teacher_captures, student_captures = _captures(teacher, students, batch)
    first = next(iter(student_captures.values()))
    statistics = []
    for layer, teacher_layer in layer_map(list(teacher_captures), list(first)).items():
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
                plan=squeezed.plan,
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
