"""Squeezing-Heads Distillation (arXiv 2502.07436): the student's attention maps follow the squeezed teacher's."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from dit_shd.attention.capture import Capture, Captures, one_layer
from dit_shd.attention.recording.attach import Capturing
from dit_shd.attention.tiles import CHUNK_MIB
from dit_shd.core import rng
from dit_shd.core.errors import UserError
from dit_shd.distillation.layer_map import LayerMap, layer_map
from dit_shd.distillation.losses import Listener, Loss, Term, View, Weight
from dit_shd.squeezing.backends.autotune import Backend
from dit_shd.squeezing.backends.job import Measure
from dit_shd.squeezing.cost import LayerCost, layer_cost
from dit_shd.squeezing.divergence import attention_kl
from dit_shd.squeezing.matching import MapSimilarity, matched
from dit_shd.squeezing.plans import Plan
from dit_shd.squeezing.products import Projections
from dit_shd.squeezing.squeeze import Method, NotFiniteError, plan_of, squeeze
from dit_shd.tasks.diffusion import Batch, PassName

Groups = list[list[int]]


class SHD(Loss):
    """sum over layers and student heads of KL(A~ || B), mean over samples and query rows (eq. 5-11).

    In a training script of your own: `loss = SHD()(teacher_captures, student_captures)`.

    Args:
        weight: beta; 2.0 for images in the paper's appendix. {step: beta} for a schedule.
        passes: where it applies. In a masked pass layers can differ in tokens; map them by section then.
        plan: which teacher heads each student head stands for: contiguous; matched (similar heads together, found on
            calibration batches before training); a list of groups; or {student layer: list of groups}.
        method: pairwise (the paper's alpha), joint, per_query, constant or hard; see squeeze. seed: for hard and rows.
        temperature: T_a of both maps in the divergence; alpha is computed on the untempered maps.
        measure: kl; cross_entropy (the same gradient, cheaper on the fused backend); mse (the paper's table 10).
        layers: sections, proportional, or a map {student layer: teacher layer}.
        backend: of the divergence: auto, streamed or fused; see attention_kl.
        rows: share of the query rows, drawn anew in every call, that alpha and the divergence are estimated from.
        calibration: batches that a matched plan looks at (32 images each in training).
        chunk_mib: memory budget for attention maps, in MiB.
    """

    needs_captures = True
    needs_output = False

    def __init__(
        self,
        weight: Weight = 2.0,
        passes: Sequence[PassName] = ("plain",),
        plan: str | Groups | dict[str, Groups] = "contiguous",
        method: Method = "pairwise",
        temperature: float = 1.0,
        measure: Measure = "kl",
        layers: str | dict[str, str] = "sections",
        backend: Backend = "auto",
        rows: float = 1.0,
        calibration: int = 4,
        seed: int = 0,
        chunk_mib: float = CHUNK_MIB,
    ):
        super().__init__(weight, passes)
        if isinstance(plan, str) and plan not in ("contiguous", "matched"):
            raise UserError(f"SHD: plan: wanted contiguous, matched or a list of groups, found '{plan}'")
        for name, value, kind in (
            ("method", method, Method),
            ("measure", measure, Measure),
            ("backend", backend, Backend),
        ):
            if value not in get_args(kind):
                raise UserError(f"SHD: {name}: wanted one of {', '.join(get_args(kind))}, found '{value}'")
        if not temperature > 0:
            raise UserError(f"SHD: temperature: wanted a number above 0, found {temperature}")
        if not chunk_mib > 0:
            raise UserError(f"SHD: chunk_mib: wanted a memory budget above 0 MiB, found {chunk_mib}")
        if not 0 < rows <= 1:
            raise UserError(f"SHD: rows: wanted a share above 0 and at most 1, found {rows}")
        if calibration < 1:
            raise UserError(f"SHD: calibration: wanted 1 batch or more, found {calibration}")
        if isinstance(layers, dict) and not layers:
            raise UserError(
                "SHD: layers: the map is empty; wanted sections, proportional or {student layer: teacher layer}"
            )
        self.plan, self.temperature, self.rows = plan, temperature, rows
        self.method: Method = method
        self.measure: Measure = measure
        self.backend: Backend = backend
        self.layers: LayerMap = layers  # type: ignore[assignment]
        self.calibration = calibration if plan == "matched" else 0
        self.seed, self.chunk_mib = seed, chunk_mib
        self.plans: dict[str, Plan] = {}
        """Student layer -> its matched plan."""
        self.projections = Projections()
        self._similarities: dict[str, tuple[MapSimilarity, int]] = {}

    def forward(self, teacher: Captures, student: Captures, step: int = 0) -> Tensor:
        """The weighted loss of two models' captures, a scalar with a gradient to the student only.

        step: where you are in training, for a weight that follows a schedule.
        """
        return self.weight_at(step) * self.divergence(teacher, student).value.mean()

    def term(self, view: View) -> Term:
        return self.divergence(view.teacher_captures, view.student_captures, view.batch)

    def divergence(self, teacher: Captures, student: Captures, batch: Batch | None = None) -> Term:
        """Value per sample [b]; logs hold each layer's mean alpha and divergence, the share clamped and the residual.

        Raises:
            UserError: no captures, more student heads than teacher heads, other token counts, layers that do not map.
        """
        _given("teacher", teacher)
        _given("student", student)
        heard = self.listener(list(teacher), student, batch)
        for name, capture in teacher.items():
            heard(name, capture)
        return heard.term()

    def listener(self, layers: Sequence[str], student: Captures, batch: Batch | None = None) -> "Layers":
        return Layers(self, layer_map(layers, list(student), self.layers), student, batch)

    def plan_of(self, layer: str) -> Any:
        """The plan of a student layer, as squeeze takes it."""
        if self.plan == "matched":
            if layer not in self.plans:
                raise UserError(
                    f"SHD: the matched plan of {layer} is not known yet; in a script of your own call "
                    "loss.calibrate(teacher_captures, student_captures) on some batches, then loss.calibrated()"
                )
            return self.plans[layer]
        if isinstance(self.plan, dict):
            if layer not in self.plan:
                raise UserError(f"SHD: plan: names no groups for {layer}; it has {', '.join(self.plan)}")
            return self.plan[layer]
        return self.plan

    def cost(self, teacher: Captures, student: Captures, images: int) -> LayerCost:
        total = LayerCost()
        for ours, theirs in layer_map(list(teacher), list(student), self.layers).items():
            s, t = student[ours], teacher[theirs]
            fits(ours, s, theirs, t)
            known = self.plan != "matched" or ours in self.plans
            groups = self.plan_of(ours) if known else "contiguous"  # a matched plan's groups are as large
            plan = plan_of(groups, t.heads, s.heads)
            total += layer_cost(t, s, plan, images, self.method, self.rows, self.temperature, self.chunk_mib)
        return total

    def calibrate(self, teacher: Captures, student: Captures) -> None:
        _given("teacher", teacher)
        _given("student", student)
        for ours, theirs in layer_map(list(teacher), list(student), self.layers).items():
            fits(ours, student[ours], theirs, teacher[theirs])
            similarity, _ = self._similarities.get(ours, (MapSimilarity(self.chunk_mib), 0))
            similarity.add(teacher[theirs])
            self._similarities[ours] = (similarity, student[ours].heads)

    def calibrated(self) -> dict[str, Any]:
        for layer, (similarity, heads) in self._similarities.items():
            self.plans[layer] = matched(similarity.cosines(), heads)
        self._similarities.clear()
        return {"plans": {layer: [list(part) for part in plan] for layer, plan in self.plans.items()}}

    def restore(self, found: dict[str, Any]) -> None:
        plans = found.get("plans")
        if not isinstance(plans, dict) or not all(isinstance(plan, list) for plan in plans.values()):
            raise UserError("SHD: the calibration of this run holds no plans")
        self.plans = {layer: tuple(tuple(part) for part in plan) for layer, plan in plans.items()}


class Layers(Listener):
    """The loss of one pass, layer by layer as the teacher's captures come in."""

    def __init__(self, loss: SHD, pairs: dict[str, str], student: Captures, batch: Batch | None):
        self.loss, self.student, self.batch = loss, student, batch
        self.pairs = pairs
        self.values: dict[str, Tensor] = {}
        self.gradients = torch.is_grad_enabled()
        self.logs: dict[str, dict[str, Tensor]] = {}

    def __call__(self, layer: str, capture: Capture) -> None:
        for ours, theirs in self.pairs.items():
            if theirs == layer:
                try:
                    with torch.set_grad_enabled(self.gradients):  # the teacher runs without
                        self.values[ours] = self._layer(ours, self.student[ours], theirs, capture)
                except UserError:
                    raise
                except ValueError as error:
                    if self.batch is None or not isinstance(error, NotFiniteError):
                        raise UserError(f"SHD: {ours} of the student, {theirs} of the teacher: {error}") from error
                    self.values[ours], self.logs[ours] = _not_finite(self.student[ours]), {}  # the trainer's to judge

    @property
    def waits(self) -> bool:
        return len(self.values) < len(self.pairs)

    def _layer(self, ours: str, s: Capture, theirs: str, t: Capture) -> Tensor:
        loss = self.loss
        fits(ours, s, theirs, t)
        if _same(s.query, t.query):
            raise UserError(
                f"SHD: {ours} of the student and {theirs} of the teacher are captures of one and the same forward, so "
                "nothing is to be learned; of one model, capture its forward as a teacher first, then the student's"
            )
        if loss.rows < 1:
            rows = self._rows(ours, t.shape[2]).to(t.query.device)
            s, t = s.select(rows), t.select(rows)
        squeezed = squeeze(
            t,
            s.heads,
            loss.plan_of(ours),
            loss.method,
            seed=loss.seed,
            chunk_mib=loss.chunk_mib,
            keep_maps=loss.temperature == 1,
            projections=loss.projections,
        )
        value = attention_kl(t, s, squeezed, loss.temperature, loss.measure, loss.backend, loss.chunk_mib)
        logs = {f"{loss.measure}/{ours}": value.detach().mean()}
        if squeezed.alpha is not None and squeezed.alpha.numel():
            assert squeezed.clamped is not None
            logs |= {f"alpha/{ours}": squeezed.alpha.mean(), "clamped": squeezed.clamped.float().mean()}
        if squeezed.residual is not None:
            logs["residual"] = squeezed.residual.mean()
        self.logs[ours] = logs
        return value

    def _rows(self, layer: str, n: int) -> Tensor:
        """Some query rows, in order: a function of the batch in training, of torch's generator elsewhere."""
        count = max(1, round(self.loss.rows * n))
        if self.batch is None:
            return torch.randperm(n)[:count].sort().values
        first, t = int(self.batch.indices[0]), int(self.batch.t[0])
        order = rng.stream(self.loss.seed, f"rows/{layer}", first, t).permutation(n)[:count]
        return torch.from_numpy(order).sort().values

    def term(self) -> Term:
        missing = [theirs for ours, theirs in self.pairs.items() if ours not in self.values]
        if missing:
            raise UserError(f"SHD: layer {missing[0]} of the teacher did not run in this pass, but did before")
        ordered = [self.logs[ours] for ours in self.pairs]
        logs = {k: v for found in ordered for k, v in found.items() if "/" in k}
        for key in ("clamped", "residual"):
            each = [found[key] for found in ordered if key in found]
            logs |= {key: torch.stack(each).mean()} if each else {}
        values = [self.values[ours] for ours in self.pairs]
        b = math.gcd(*(len(value) for value in values))  # a video's layers see b x frames or b x places samples
        return Term(torch.stack([value.view(b, -1).mean(1) for value in values]).sum(0), logs)


def _same(ours: Tensor, theirs: Tensor) -> bool:
    """Whether these are one tensor, and not one and its detached self, which somebody meant."""
    one = ours.data_ptr() == theirs.data_ptr() and ours.device.type != "meta"
    return one and ours.requires_grad == theirs.requires_grad


def _given(role: str, captures: Any) -> None:
    """Refuse what is no captures of a forward."""
    first = f"run it inside `with capture({role}) as captures` and give those"
    if not isinstance(captures, (Mapping, Capturing)):  # the second one says itself what to do
        raise UserError(f"SHD: wanted the {role}'s captures, found {type(captures).__name__}; {first}")
    layers = dict(captures.items())
    if not layers:
        raise UserError(f"SHD: the {role}'s captures are empty; {first}")
    for name, capture in layers.items():
        one_layer(capture, f"SHD: the {role}'s captures: {name}")


def _not_finite(s: Capture) -> Tensor:
    """NaN for each sample [b], and in the gradient: the trainer's guard sees it, in all processes alike."""
    return s.query.flatten(1).sum(1) * math.nan


def fits(ours: str, s: Capture, theirs: str, t: Capture) -> None:
    """Whether a student layer can learn from a teacher layer.

    Raises:
        UserError: more heads than the teacher, or other tokens.
    """
    if s.heads > t.heads:
        raise UserError(
            f"SHD: the student has {s.heads} heads in {ours}, the teacher only {t.heads} in {theirs}; "
            "heads can be merged, not split"
        )
    if s.shape[0] != t.shape[0]:
        raise UserError(
            f"SHD: {ours} of the student saw {s.shape[0]} samples and {theirs} of the teacher {t.shape[0]}; "
            "run both on the same batch"
        )
    if s.shape[2:] != t.shape[2:]:
        raise UserError(
            f"SHD: {ours} of the student has {s.shape[2]} query and {s.shape[3]} key tokens, {theirs} of the teacher "
            f"{t.shape[2]} and {t.shape[3]}; their maps cannot be compared (same patch size, latents and text? other "
            "layers=?)"
        )
