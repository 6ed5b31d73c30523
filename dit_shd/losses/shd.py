"""Squeezing-Heads Distillation (arXiv 2502.07436): the student's attention maps follow the squeezed teacher's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dit_shd.attention import Captures
from dit_shd.attention.tiles import CHUNK_MIB
from dit_shd.batch import PassName
from dit_shd.divergence import Measure, attention_kl
from dit_shd.errors import UserError
from dit_shd.layers import LayerMap, layer_map
from dit_shd.losses import Loss, Term, View
from dit_shd.squeezing import Method, squeeze


class SHD(Loss):
    """sum over layers and student heads of KL(A~ || B), mean over samples and query rows (eq. 5-11).

    In a training script of your own: `loss = SHD()(teacher_captures, student_captures)`.

    Args:
        weight: beta; 2.0 for images in the paper's appendix.
        passes: where it applies. In a masked pass layers can differ in tokens; map them by section then.
        plan: `contiguous`, or a list of groups of teacher heads, one for each student head.
        method: pairwise (the paper's alpha), constant or hard. seed: for hard.
        temperature: T_a of both maps in the divergence; alpha is computed on the untempered maps.
        measure: kl, or mse (the paper's table 10).
        layers: sections, proportional, or a map {student layer: teacher layer}.
        chunk_mib: memory budget for attention maps, in MiB.
    """

    needs_captures = True

    def __init__(
        self,
        weight: float = 2.0,
        passes: Sequence[PassName] = ("plain",),
        plan: str | list[list[int]] = "contiguous",
        method: Method = "pairwise",
        temperature: float = 1.0,
        measure: Measure = "kl",
        layers: str | dict[str, str] = "sections",
        seed: int = 0,
        chunk_mib: float = CHUNK_MIB,
    ):
        super().__init__(weight, passes)
        if isinstance(plan, str) and plan != "contiguous":
            raise UserError(f"SHD: plan: wanted contiguous or a list of groups, found '{plan}'")
        if not temperature > 0:
            raise UserError(f"SHD: temperature: wanted a number above 0, found {temperature}")
        if not chunk_mib > 0:
            raise UserError(f"SHD: chunk_mib: wanted a memory budget above 0 MiB, found {chunk_mib}")
        if isinstance(layers, dict) and not layers:
            raise UserError(
                "SHD: layers: the map is empty; wanted sections, proportional or {student layer: teacher layer}"
            )
        self.plan, self.temperature = plan, temperature
        self.method: Method = method
        self.measure: Measure = measure
        self.layers: LayerMap = layers  # type: ignore[assignment]
        self.seed, self.chunk_mib = seed, chunk_mib

    def forward(self, teacher: Captures, student: Captures) -> Tensor:
        """The weighted loss of two models' captures, a scalar with a gradient to the student only."""
        return self.weight * self.divergence(teacher, student).value.mean()

    def term(self, view: View) -> Term:
        return self.divergence(view.teacher_captures, view.student_captures)

    def divergence(self, teacher: Captures, student: Captures) -> Term:
        """Value per sample [b]; logs hold each layer's mean alpha and divergence, the share clamped and the residual.

        Raises:
            UserError: more student heads than teacher heads, other token counts, layers that do not map.
        """
        values, logs, clamped, residual = [], {}, [], []
        for ours, theirs in layer_map(list(teacher), list(student), self.layers).items():
            t, s = teacher[theirs], student[ours]
            if s.heads > t.heads:
                raise UserError(
                    f"SHD: the student has {s.heads} heads in {ours}, the teacher only {t.heads} in {theirs}; "
                    "heads can be merged, not split"
                )
            if s.shape[2:] != t.shape[2:]:
                raise UserError(
                    f"SHD: {ours} of the student sees {s.shape[2]} tokens and {theirs} of the teacher {t.shape[2]}; "
                    "their maps cannot be compared (same patch size and latents? layers=sections?)"
                )
            plan = self.plan if not isinstance(self.plan, str) else "contiguous"
            squeezed = squeeze(t, s.heads, plan, self.method, seed=self.seed, chunk_mib=self.chunk_mib)
            value = attention_kl(t, s, squeezed, self.temperature, self.measure, chunk_mib=self.chunk_mib)
            values.append(value)
            logs[f"{self.measure}/{ours}"] = value.detach().mean()
            if squeezed.alpha is not None and squeezed.alpha.numel():
                assert squeezed.clamped is not None and squeezed.residual is not None
                logs[f"alpha/{ours}"] = squeezed.alpha.mean()
                clamped.append(squeezed.clamped.float().mean())
                residual.append(squeezed.residual.mean())
        if clamped:
            logs |= {"clamped": torch.stack(clamped).mean(), "residual": torch.stack(residual).mean()}
        return Term(torch.stack(values).sum(0), logs)
