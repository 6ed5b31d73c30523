"""Squeezing-Heads Distillation (arXiv 2502.07436): divergence of the student's maps from the squeezed teacher's."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from math import inf
from numbers import Real
from operator import index
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from dit_shd.attention.capture import Capture, Captures
from dit_shd.attention.tiles import CHUNK_MIB
from dit_shd.core.cuda_graphs import CudaGraphs
from dit_shd.core.errors import UserError
from dit_shd.distillation.comparison import (
    Freshness,
    check_depths,
    check_finite,
    check_graphs,
    checked,
    comparable,
    warn_of_no_graph,
)
from dit_shd.distillation.image_block import of_image, over_image
from dit_shd.distillation.layer_map import layer_map
from dit_shd.distillation.losses import Layer, LayerLoss, Layers, Needs, Pairs, Term, Weight, alternatives
from dit_shd.distillation.relations import row_sample
from dit_shd.distillation.row_weights import RowWeight, check_patterns, nothing, rows_of
from dit_shd.distillation.squeeze_logs import squeeze_logs
from dit_shd.squeezing.backends.autotune import Backend
from dit_shd.squeezing.backends.job import Measure
from dit_shd.squeezing.cost import LayerCost
from dit_shd.squeezing.divergence import attached, divergence_job, gradients_of
from dit_shd.squeezing.squeeze import Method
from dit_shd.squeezing.squeezer import Groups, Squeezer
from dit_shd.tasks import Batch


class SHD(LayerLoss):
    """Sum over layers and student heads of KL(A~ || B), mean over samples and query rows (eq. 5-11).

    In your own training script: `loss = SHD()(teacher_captures, student_captures)`.

    Args:
        weight: Beta; 2.0 for images in the paper's appendix. {step: beta} for a schedule, in YAML also {20%: beta}.
        passes: Names of the task's passes; None for all. Layers can differ in tokens where a pass leaves some out: map
            them by section then.
        plan: Which teacher heads each student head stands for: contiguous; matched (similar heads together, found on
            calibration batches before training); a list of groups; or {student layer: list of groups}.
        method: Of squeezing: pairwise (the paper's alpha), joint, per_query, constant or hard; see squeeze.
        temperature: T_a of both maps in the divergence; alpha is computed on the untempered maps.
        block: Of maps over text and image in one sequence: `joint`, all of it; `image`, image queries over image keys,
            where the layers' own modules or the batch tell them apart (not in the one stream of Lumina 2).
        measure: `kl`; `cross_entropy` (the same gradient, cheaper on the fused backend); `mse` (the paper's table 10).
        layers: `sections`, `proportional`, or a map {student layer: teacher layer}.
        backend: `auto`, `streamed`, `fused` or `triton`; see attention_kl and Squeezer.
        rows: Share of the query rows, drawn anew in every call, that alpha and the divergence are estimated from.
        calibration: Batches from which a matched plan is found (32 images each in training).
        seed: For the method hard and for rows; in a config the run's.
        chunk_mib: Memory budget for attention maps, in MiB.

    Raises:
        UserError: A value out of its range.
    """

    needs = frozenset({Needs.FEWER_HEADS})
    paper = "arXiv 2502.07436"

    def __init__(
        self,
        weight: Weight = 2.0,
        passes: Sequence[str] | None = ("plain",),
        plan: str | Groups | dict[str, Groups] = "contiguous",
        method: Method = "pairwise",
        temperature: float = 1.0,
        block: Literal["joint", "image"] = "joint",
        measure: Measure = "kl",
        layers: str | dict[str, str] = "sections",
        backend: Backend = "auto",
        rows: float = 1.0,
        calibration: int = 4,
        seed: int = 0,
        chunk_mib: float = CHUNK_MIB,
    ):
        super().__init__(weight, passes, layers)
        if isinstance(plan, str) and plan not in ("contiguous", "matched"):
            raise UserError(f"SHD: plan: wanted contiguous, matched or a list of groups, found '{plan}'")
        for name, value, choices in (
            ("method", method, get_args(Method)),
            ("block", block, ("joint", "image")),
            ("measure", measure, get_args(Measure)),
            ("backend", backend, get_args(Backend)),
        ):
            if value not in choices:
                raise UserError(f"SHD: {name}: wanted one of {', '.join(choices)}, found '{value}'")
        numbers = {"temperature": temperature, "chunk_mib": chunk_mib, "rows": rows, "calibration": calibration}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, Real):  # of NumPy, too
                raise UserError(f"SHD: {name}: wanted a number, found {value!r}")
        if not 0 < temperature < inf:
            raise UserError(f"SHD: temperature: wanted a finite number above 0, found {temperature}")
        if not chunk_mib > 0:
            raise UserError(f"SHD: chunk_mib: wanted a memory budget above 0 MiB, found {chunk_mib}")
        if not 0 < rows <= 1:
            raise UserError(f"SHD: rows: wanted a share above 0 and at most 1, found {rows}")
        if calibration < 1:
            raise UserError(f"SHD: calibration: wanted 1 batch or more, found {calibration}")
        self.squeezer = Squeezer(plan, method, seed, chunk_mib, backend)
        self.temperature, self.rows = temperature, rows
        self.measure: Measure = measure
        self.backend: Backend = backend
        self.block = block
        self.calibration = calibration if self.squeezer.plan == "matched" else 0
        self.graphs = CudaGraphs()
        """What layers are replayed by on a GPU, where all that a layer reads stays in its place."""
        self._names: dict[str, list[str]] = {}
        self._row_weight: RowWeight | None = None
        self._freshness = Freshness()
        self._unchecked = True
        """Whether numbers are still to be looked at; afterwards a GPU is not waited for any more."""

    def forward(
        self, teacher: Captures, student: Captures, step: int | None = None, *, row_weight: RowWeight | None = None
    ) -> Tensor:
        """The weighted loss of two models' captures: a scalar with a gradient to the student only.

        Args:
            teacher: Captures of its forward.
            student: Captures of its forward on the same batch.
            step: Of training, where the weight follows a schedule; once that has come to 0 nothing is computed.
            row_weight: What every query row counts [b,n], 0 for padding; None: 1 each. The sum is divided by n. Where
                layers have other rows, {pattern of the student's layers: [b,n]}, such as {"*:text": prompts}.

        Raises:
            UserError: Captures or row weights that do not fit, or no step where the weight follows a schedule.
        """
        if step is not None:
            try:
                step = index(step)  # of NumPy, too
            except TypeError as error:
                raise UserError(f"SHD: step: wanted a whole number, found {type(step).__name__}") from error
        if step is None and set(self.weight) != {0}:
            raise UserError("SHD: the weight follows a schedule; give the step: loss(teacher, student, step=step)")
        if self.ended(step or 0):
            device = next((capture.query.device for capture in student.values()), None)
            return torch.zeros((), device=device, requires_grad=True)
        value = self.divergence(teacher, student, row_weight).value.mean()
        if torch.is_grad_enabled() and not any(x.requires_grad for c in student.values() for x in (c.query, c.key)):
            warn_of_no_graph()
        return self.weight_at(step or 0) * value

    def divergence(self, teacher: Captures, student: Captures, row_weight: RowWeight | None = None) -> Term:
        """Value per sample [b]; logs: each layer's divergence, mean alpha and alpha by merge, share clamped, residual.

        Args:
            teacher: Captures of its forward.
            student: Captures of its forward on the same batch.
            row_weight: As for calling the loss.

        Raises:
            UserError: No captures, more student heads than teacher heads, other token counts, layers that do not map.
        """
        teacher, student = self.checked(teacher, student)
        check_graphs(teacher, student)
        check_patterns(row_weight, self._chosen(student))
        self._freshness(teacher, student)
        self._row_weight = row_weight
        try:
            pairs = self.begin(list(teacher), {name: Layer(name, capture) for name, capture in student.items()}, None)
            for name, capture in teacher.items():
                pairs(Layer(name, capture))
        finally:
            self._row_weight = None
        self._unchecked = False
        term = pairs.term()
        if row_weight is None:
            return term
        return replace(term, value=term.value + nothing(row_weight).to(term.value))

    def checked(self, teacher: Captures, student: Captures) -> tuple[Captures, Captures]:
        """The captures of two forwards, which are refused if they are anything else, or layers are missing."""
        layers = checked("teacher", teacher), checked("student", student)
        if self.layers in ("sections", "proportional"):
            check_depths(teacher, student)
        return layers

    def layer_map(self, student: Iterable[str], teacher: Iterable[str]) -> dict[str, str]:
        return layer_map(self._chosen(teacher), self._chosen(student), self.layers)

    def begin(self, teacher: Sequence[str], student: Layers, batch: Batch | None) -> Pairs:
        taught, learns = self._chosen(teacher, batch), self._chosen(student, batch)
        return super().begin(taught, {name: student[name] for name in learns}, batch)

    def _chosen(self, layers: Iterable[str], batch: Batch | None = None) -> list[str]:
        """The layers whose queries are in the block."""
        return list(layers) if self.block == "joint" else of_image(layers, batch)

    def _pairs(
        self, teacher: Captures, student: Captures, batch: Batch | None = None
    ) -> Iterator[tuple[str, Capture, Capture]]:
        """Each of the student's layers that learns: its name, its capture, the teacher's."""
        for layer, source in self.layer_map(self._chosen(student, batch), self._chosen(teacher, batch)).items():
            yield layer, *self._captures(Layer(layer, student[layer]), Layer(source, teacher[source]), batch)

    def _captures(self, student: Layer, teacher: Layer, batch: Batch | None) -> tuple[Capture, Capture]:
        """Both captures of the block, if they fit."""
        s, t = comparable(student, teacher, by_depth=self.layers == "proportional")
        if s.heads > t.heads:
            raise UserError(
                f"SHD: the student has {s.heads} heads in {student.name}, the teacher only {t.heads} in "
                f"{teacher.name}; heads can be merged, not split; any number: {alternatives(SHD, Needs.FEWER_HEADS)}"
            )
        if self.block == "joint":
            return s, t
        return over_image(student.name, s, batch), over_image(teacher.name, t, batch)

    def pair(self, student: Layer, teacher: Layer, batch: Batch | None) -> Term:
        s, t = self._captures(student, teacher, batch)
        try:
            return self._divergence(student.name, s, t, batch)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"SHD: {student.name} of the student, {teacher.name} of the teacher: {error}") from error

    def _divergence(self, layer: str, s: Capture, t: Capture, batch: Batch | None) -> Term:
        values = self._unchecked
        weight = rows_of(self._row_weight, layer, t, values) if batch is None else batch.row_weight(t.shape[2])
        if self.rows < 1:
            rows = row_sample(self.rows, t.shape[2], self.squeezer.seed, layer, batch).to(t.query.device)
            s, t = s.select(rows), t.select(rows)
            weight = None if weight is None else weight[:, rows]
        check = batch is None and self._unchecked  # in training NaN is propagated to the loss, for the trainer's guard
        tensors = [t.query, t.key, t.value, *(x for x in (t.mixed, weight) if x is not None), s.query, s.key]
        key = None if check or not self._can_replay(s, t, tensors) else self._key(layer, s, t, weight)

        def compute(*given: Tensor) -> list[Tensor]:
            """Logs, the value, and its gradients."""
            t_query, t_key, t_value, *some, s_query, s_key = (x.detach() for x in given)
            teacher = t.with_tensors(t_query, t_key, t_value, None if t.mixed is None else some[0])
            student = s.with_tensors(s_query, s_key, s.value.detach())
            if key is not None:  # a graph must not read what an earlier run made: that is gone when it is replayed
                teacher, student = teacher.with_new_bias(), student.with_new_bias()
            row_weight = None if weight is None else some[-1]
            keep_maps, chunk_mib = self.temperature == 1, self.squeezer.chunk_mib
            buffers = self.squeezer.buffers(s.query)
            squeezed = self.squeezer.squeeze(layer, teacher, s.heads, keep_maps, row_weight, check, buffers)
            how = (self.temperature, self.measure, self.backend, chunk_mib, row_weight, check, buffers)
            job, run = divergence_job(teacher, student, squeezed, *how)
            wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (s.query, s.key, *s.bias_leaves))
            job = replace(job, gradients=wanted, bias_needs_grad=s.bias is not None and s.bias.needs_grad())
            logs = squeeze_logs(layer, squeezed)
            self._names[layer] = list(logs)
            return [*logs.values(), *gradients_of(job, run)]

        parts = compute(*tensors) if key is None else self.graphs(key, compute, tensors)
        names = self._names[layer]
        value = attached(s, parts[len(names) :])
        if check:
            check_finite(layer, value)
        return Term(value, {f"{self.measure}/{layer}": value.detach().mean(), **dict(zip(names, parts))})

    def _can_replay(self, s: Capture, t: Capture, tensors: Sequence[Tensor]) -> bool:
        """Whether a CUDA graph may do a layer: but for these tensors it reads nothing that every step makes anew."""
        fixed = all(getattr(x.bias, "code", None) is None for x in (s, t))
        return fixed and s.positions is None and t.positions is None and self.graphs.serve(tensors)

    def _key(self, layer: str, s: Capture, t: Capture, weight: Tensor | None) -> Hashable:
        """Everything that a layer's computation depends on beside the values of its tensors."""
        read = [t.out, *t.bias_leaves, *s.bias_leaves]
        squeezer = self.squeezer
        return (
            *(self.temperature, self.measure, self.backend, squeezer.backend, squeezer.method, squeezer.seed),
            *(layer, torch.is_grad_enabled(), weight is None, t.mixed is None, squeezer.projections.generation),
            *((x.shape, x.stride(), x.dtype, x.requires_grad) for x in (t.query, t.key, t.value, s.query, s.key)),
            *(t.scale, t.causal, type(t.bias), s.scale, s.causal, type(s.bias), str(squeezer.plan_for(layer, t))),
            *(None if x is None else (x.data_ptr(), x.shape, x.stride(), x.dtype, x.requires_grad) for x in read),
            *(t.query.device, None if t.out is None or t.out.is_inference() else t.out._version),
        )

    def cost(self, teacher: Captures, student: Captures, images: int) -> LayerCost:
        total = LayerCost()
        for layer, s, t in self._pairs(teacher, student):
            total += self.squeezer.cost(layer, t, s, images, self.rows, self.temperature)
        return total

    def calibrate(
        self, teacher: Captures, student: Captures, batch: Batch | None = None, *, row_weight: RowWeight | None = None
    ) -> None:
        teacher, student = self.checked(teacher, student)
        check_patterns(row_weight, self._chosen(student))
        for layer, s, t in self._pairs(teacher, student, batch):
            weight = rows_of(row_weight, layer, t, values=True) if batch is None else batch.row_weight(t.shape[2])
            self.squeezer.add(layer, t, s.heads, weight)

    def calibrated(self) -> dict[str, Any]:
        return {"plans": {layer: [list(group) for group in plan] for layer, plan in self.squeezer.match().items()}}

    def restore(self, calibration: dict[str, Any]) -> None:
        plans = calibration.get("plans") if isinstance(calibration, dict) else None
        if not isinstance(plans, dict) or not all(isinstance(plan, list) for plan in plans.values()):
            raise UserError("SHD: the calibration of this run holds no plans")
        self.squeezer.plans = {layer: tuple(tuple(group) for group in plan) for layer, plan in plans.items()}
