"""How a layer's teacher heads become the student's: plan, method and what they need, as one object."""

from typing import Any

from torch import Tensor

from dit_shd.attention.capture import Capture
from dit_shd.attention.tiles import CHUNK_MIB
from dit_shd.core.errors import UserError
from dit_shd.squeezing.cost import LayerCost, layer_cost
from dit_shd.squeezing.matching import MapSimilarity, matched
from dit_shd.squeezing.plans import Plan, check_plan, contiguous
from dit_shd.squeezing.products import Projections
from dit_shd.squeezing.squeeze import Method, Squeeze, plan_of, squeeze

Groups = list[list[int]]


class Squeezer:
    """Squeezes the heads of any layer; what a loss trains on and what a student's first weights follow.

    Args:
        plan: which teacher heads each student head stands for: contiguous; matched (similar heads together, found on
            calibration batches); a list of groups; or {student layer: list of groups}.
        method: pairwise (the paper's alpha), joint, per_query, constant or hard; see squeeze.
        seed: for hard. chunk_mib: memory budget for attention maps, in MiB.
    """

    def __init__(
        self,
        plan: str | Groups | dict[str, Groups] = "contiguous",
        method: Method = "pairwise",
        seed: int = 0,
        chunk_mib: float = CHUNK_MIB,
    ):
        self.plan, self.seed, self.chunk_mib = plan, seed, chunk_mib
        self.method: Method = method
        self.plans: dict[str, Plan] = {}
        """Student layer -> its matched plan."""
        self.projections = Projections()
        self._similarities: dict[str, tuple[MapSimilarity, int]] = {}

    def plan_for(self, layer: str) -> Any:
        """The plan of a student layer, as squeeze takes it.

        Raises:
            UserError: a matched plan that is not known yet, or a map that does not name the layer.
        """
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

    def groups(self, layer: str, heads: int, wanted: int) -> Plan:
        """The teacher heads of each student head of a layer; neighbours where the plan says nothing of it."""
        plan: Any = self.plans if self.plan == "matched" else self.plan
        if isinstance(plan, dict):
            plan = plan.get(layer, "contiguous")
        return contiguous(heads, wanted) if isinstance(plan, str) else check_plan(plan, heads, wanted)

    def squeeze(
        self,
        layer: str,
        teacher: Capture,
        heads: int,
        keep_maps: bool = False,
        row_weight: Tensor | None = None,
        check: bool = True,
    ) -> Squeeze:
        """Weights that squeeze a teacher layer into the `heads` of a student layer; the rest as in squeeze."""
        return squeeze(
            teacher,
            heads,
            self.plan_for(layer),
            self.method,
            seed=self.seed,
            chunk_mib=self.chunk_mib,
            keep_maps=keep_maps,
            projections=self.projections,
            row_weight=row_weight,
            check=check,
        )

    def cost(
        self, layer: str, teacher: Capture, student: Capture, images: int, rows: float, temperature: float
    ) -> LayerCost:
        """What a layer takes, by count; a matched plan that is not known yet has groups as large as neighbours'."""
        known = self.plan != "matched" or layer in self.plans
        plan = plan_of(self.plan_for(layer) if known else "contiguous", teacher.heads, student.heads)
        return layer_cost(teacher, student, plan, images, self.method, rows, temperature, self.chunk_mib)

    def add(self, layer: str, teacher: Capture, heads: int) -> None:
        """Count a calibration batch in for a matched plan of a student layer of `heads`."""
        similarity, _ = self._similarities.get(layer, (MapSimilarity(self.chunk_mib), 0))
        similarity.add(teacher)
        self._similarities[layer] = (similarity, heads)

    def match(self) -> dict[str, Plan]:
        """The matched plans of all layers that were counted in."""
        for layer, (similarity, heads) in self._similarities.items():
            self.plans[layer] = matched(similarity.cosines(), heads)
        self._similarities.clear()
        return self.plans
