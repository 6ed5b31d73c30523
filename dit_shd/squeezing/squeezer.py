"""Squeezer: plan and method of squeezing for all layers, with the state that they need."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dit_shd.attention.capture import Capture, whole_of
from dit_shd.attention.kernels.captures import unfit
from dit_shd.attention.tiles import CHUNK_MIB, Buffers
from dit_shd.core.errors import UserError
from dit_shd.core.precision import wide_dtype
from dit_shd.squeezing.backends.autotune import Backend, fastest, rounded
from dit_shd.squeezing.cost import LayerCost, layer_cost
from dit_shd.squeezing.matching import MapSimilarity, matched
from dit_shd.squeezing.plans import Plan, check_plan, contiguous, groups_of
from dit_shd.squeezing.projections import Projections
from dit_shd.squeezing.squeeze import Backend as SqueezeBackend
from dit_shd.squeezing.squeeze import Method, PlanLike, Squeeze, plan_of, squeeze

Groups = list[list[int]]


class Squeezer:
    """Squeezes the heads of any layer, for a loss and for the initialisation of a student alike.

    Args:
        plan: The groups of teacher heads: contiguous; matched (similar heads, by calibration batches); a list of
            groups; or {student layer: list of groups}. Of a layer that takes its samples one at a time all samples have
            the layer's.
        method: `pairwise` (the paper's alpha), joint, per_query, constant or hard; see squeeze.
        seed: The seed of the method hard.
        chunk_mib: Memory budget for attention maps, in MiB.
        backend: `triton`, or `auto`: the faster of streamed and triton on a GPU, measured once for each kind of layer;
            streamed otherwise, also beside a fused divergence.
    """

    def __init__(
        self,
        plan: str | Groups | dict[str, Groups] = "contiguous",
        method: Method = "pairwise",
        seed: int = 0,
        chunk_mib: float = CHUNK_MIB,
        backend: Backend = "streamed",
    ):
        self.backend: Backend = backend
        self.plan = plan if isinstance(plan, (str, dict)) else groups_of(plan)
        self.seed, self.chunk_mib = seed, chunk_mib
        self.method: Method = method
        self.plans: dict[str, Plan] = {}
        """Student layer -> its matched plan."""
        self.projections = Projections()
        self._similarities: dict[str, tuple[MapSimilarity, int]] = {}
        self._buffers: Buffers | None = None

    def plan_for(self, layer: str, teacher: Capture) -> PlanLike:
        """The plan of a student layer, as squeeze takes it.

        Args:
            layer: Its name.
            teacher: The layer that it learns from.

        Raises:
            UserError: A matched plan before calibration, or a mapping without the layer.
        """
        whole = whole_of(layer, teacher)
        if self.plan == "matched":
            layer = whole
            if layer not in self.plans:
                raise UserError(
                    f"SHD: the matched plan of {layer} is not known yet; in your own script call "
                    "loss.calibrate(teacher_captures, student_captures) on some batches, then loss.calibrated(); on "
                    "resume give loss.restore(...) what that returned"
                )
            return self.plans[layer]
        if isinstance(self.plan, dict):
            layer = layer if layer in self.plan else whole
            if layer not in self.plan:
                raise UserError(f"SHD: plan: names no groups for {layer}; it has {', '.join(self.plan)}")
            return self.plan[layer]
        return "contiguous" if isinstance(self.plan, str) else self.plan

    def groups(self, layer: str, heads: int, groups: int) -> Plan:
        """The plan of a layer, contiguous where there is none for it.

        Args:
            layer: The layer of the student.
            heads: The number of heads of the teacher, h.
            groups: Their number, g.
        """
        plans = self.plans if self.plan == "matched" else self.plan
        plan = plans.get(layer, "contiguous") if isinstance(plans, dict) else plans
        return contiguous(heads, groups) if isinstance(plan, str) else check_plan(plan, heads, groups)

    def squeeze(
        self,
        layer: str,
        teacher: Capture,
        heads: int,
        keep_maps: bool = False,
        row_weight: Tensor | None = None,
        check: bool = True,
        buffers: Buffers | None = None,
    ) -> Squeeze:
        """Weights that squeeze a teacher layer into the `heads` of a student layer; the rest as in squeeze."""
        run = partial(
            squeeze,
            teacher,
            heads,
            self.plan_for(layer, teacher),
            self.method,
            seed=self.seed,
            chunk_mib=self.chunk_mib,
            keep_maps=keep_maps,
            projections=self.projections,
            row_weight=row_weight,
            check=check,
            buffers=buffers,
        )
        return run(backend=self._backend(teacher, heads, run))

    def buffers(self, like: Tensor) -> Buffers | None:
        """Scratch memory for squeeze and divergence of a layer, the same for all layers: a CPU gives pages slowly.

        Args:
            like: A query of the layer.

        Returns:
            None for fresh memory: on a GPU, whose allocator keeps it, and where a tensor made now cannot serve later.
        """
        passing = torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or type(like) is not Tensor
        if like.device.type != "cpu" or passing:
            return None
        wide = wide_dtype(like)
        if self._buffers is None or self._buffers.dtype != wide:
            self._buffers = Buffers(wide, like.device)
        return self._buffers

    def _backend(self, teacher: Capture, heads: int, run: Callable[..., Squeeze]) -> SqueezeBackend:
        """The backend for a layer; auto measures."""
        if self.backend == "triton":
            return "triton"
        if self.backend != "auto" or teacher.query.device.type != "cuda":
            return "streamed"
        reason = unfit(teacher)
        shapes = rounded(teacher.query.shape), rounded(teacher.key.shape)
        kind = ("squeeze", *shapes, heads, self.method, teacher.query.dtype)
        runs = {"streamed": partial(run, backend="streamed")}
        if reason is None:
            runs = {"triton": partial(run, backend="triton"), **runs}
        what = f"squeeze at (b, h, n, m) = {teacher.shape}"
        return "triton" if fastest(kind, what, runs, teacher.query.device, reason) == "triton" else "streamed"

    def cost(
        self, layer: str, teacher: Capture, student: Capture, images: int, rows: float, temperature: float
    ) -> LayerCost:
        """Operations and memory of a layer; a matched plan before calibration counts as the contiguous one."""
        known = self.plan != "matched" or whole_of(layer, teacher) in self.plans
        plan = plan_of(self.plan_for(layer, teacher) if known else "contiguous", teacher.heads, student.heads)
        return layer_cost(teacher, student, plan, images, self.method, rows, temperature, self.chunk_mib)

    def add(self, layer: str, teacher: Capture, heads: int, row_weight: Tensor | None = None) -> None:
        """Add a calibration batch to the matched plan of a student layer of `heads` heads; row_weight as in squeeze."""
        layer = whole_of(layer, teacher)
        similarity, _ = self._similarities.get(layer, (MapSimilarity(self.chunk_mib), 0))
        similarity.add(teacher, row_weight)
        self._similarities[layer] = (similarity, heads)

    def match(self) -> dict[str, Plan]:
        """The matched plans of all layers with calibration batches."""
        for layer, (similarity, heads) in self._similarities.items():
            self.plans[layer] = matched(similarity.cosines(), heads)
        self._similarities.clear()
        return self.plans
