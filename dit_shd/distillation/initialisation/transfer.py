"""From the teacher's weights to the student's: choose channels and heads, compute weights, refit them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from dit_shd.distillation.initialisation import structure
from dit_shd.distillation.initialisation.heads import HeadMaps, squeezed_scores, squeezed_values
from dit_shd.distillation.initialisation.importance import most_important
from dit_shd.distillation.initialisation.moments import HeadMoments, teacher_moments
from dit_shd.distillation.initialisation.plan import Heads, InitialisationPlan
from dit_shd.distillation.initialisation.refit import CutMap, Weights, fit, refit
from dit_shd.distillation.initialisation.regression import Chosen, RegressionMoments
from dit_shd.distillation.initialisation.structure import BIAS_TABLE, TABLES, LinearMap
from dit_shd.models.quantization import dequantised
from dit_shd.models.shape import shape_of
from dit_shd.squeezing.plans import Plan
from dit_shd.squeezing.squeezer import Squeezer
from dit_shd.tasks import Batch, Task


@dataclass(frozen=True, eq=False)
class Transfer:
    """Computes the weights of one student from its teacher.

    Args:
        student: Whose weights are overwritten.
        teacher: A teacher of the same family.
        layers: Student block -> teacher block.
        groups: Student block -> the teacher heads of each of its heads.
        merge: Whether to merge the heads of a group; else the one of largest weight in the squeeze is kept.
        by_importance: Whether to keep the most important channels; else the first ones.
        weights: The teacher's tensors, where it holds rounded ones; None: its own.
    """

    student: nn.Module
    teacher: nn.Module
    layers: Mapping[str, str]
    groups: Mapping[str, Plan]
    merge: bool
    by_importance: bool
    weights: Mapping[str, Tensor] | None = None

    def run(self, task: Task[Any], batches: Sequence[Batch], squeezer: Squeezer) -> InitialisationPlan:
        """Overwrite the student's weights.

        Args:
            task: Predicts with the teacher.
            batches: For calibration; none to use the weights alone.
            squeezer: For the weights of the heads.

        Returns:
            The layers, heads and channels that were chosen.
        """
        predict, layers = task.predict, self.layers
        names = [linear.source for linear in self.linear_maps if linear.reads in self.narrower]
        inputs, of_heads = teacher_moments(predict, self.teacher, batches, names, layers, self.squeezed, squeezer)
        kept = {space: self._keep(space, count, inputs) for space, count in self.narrower.items()}
        heads = {block: self._heads(block, of_heads.get(block)) for block in layers}
        head_maps = {block: self._head_maps(block, heads[block], of_heads[block], kept) for block in self.squeezed}
        self._copy_tables(kept, head_maps)
        cut: dict[str, CutMap] = {}
        for linear in self.linear_maps:
            weights = partial(self._weights, linear, kept, head_maps.get(linear.block))
            fit(self.student.get_submodule(linear.name), weights())
            if weights().start is not None:
                cut[linear.name] = CutMap(linear.source, weights)
        refit(self.student, self.teacher, cut, predict, batches)
        channels = {space: list(chosen.index) for space, chosen in kept.items()}
        return InitialisationPlan(layers, heads, channels, self.widths)

    @cached_property
    def linear_maps(self) -> list[LinearMap]:
        """The student's linear maps that are made of the teacher's."""
        return list(structure.linear_maps(self.student, self.layers))

    @cached_property
    def widths(self) -> dict[str, int]:
        """Space -> channels of the teacher."""
        return structure.widths(self.teacher, self.layers)

    @cached_property
    def narrower(self) -> dict[str, int]:
        """Space -> channels of the student, where it has fewer."""
        widths = structure.widths(self.student, {block: block for block in self.layers})
        return {space: count for space, count in widths.items() if count < self.widths[space]}

    @cached_property
    def head_widths(self) -> tuple[int, int]:
        """d of the teacher and d' of the student."""
        return head_width(self.teacher), head_width(self.student)

    @cached_property
    def squeezed(self) -> dict[str, Plan]:
        """The groups of the layers whose heads cannot be copied one by one."""
        d, d_student = self.head_widths
        return {block: plan for block, plan in self.groups.items() if d != d_student or not _is_identity(plan)}

    @cached_property
    def teacher_tensors(self) -> dict[str, Tensor]:
        """The teacher's tensors in float64."""
        state = self.teacher.state_dict() if self.weights is None else self.weights
        return {name: dequantised(tensor.detach()).cpu().double() for name, tensor in state.items()}

    def _keep(self, space: str, count: int, inputs: Mapping[str, RegressionMoments]) -> Chosen:
        """The channels that are kept of a space."""
        width = self.widths[space]
        if not self.by_importance:
            return Chosen(tuple(range(count)), width)
        readers: list[tuple[Tensor, Tensor]] = []
        for linear in self.linear_maps:
            if linear.reads == space:
                weight, moments = self.teacher_tensors[f"{linear.source}.weight"], inputs[linear.source]
                covariance = moments.covariance() if moments.count else torch.eye(weight.shape[1]).double()
                for first in range(0, weight.shape[1], width):  # each copy of the space
                    copy = slice(first, first + width)
                    readers.append((covariance[copy, copy], weight[:, copy]))
        return Chosen(most_important(count, readers), width)

    def _heads(self, block: str, moments: HeadMoments | None) -> Heads:
        """Groups, and shares in them by the weights of the squeeze; equal shares without moments."""
        shares = []
        for group in self.groups[block]:
            weight = torch.ones(len(group)) if moments is None else moments.weight[list(group)]
            share = weight / weight.sum() if weight.sum() > 0 else torch.full_like(weight, 1 / len(group))
            heaviest = torch.nn.functional.one_hot(share.argmax(), len(group))
            shares.append(tuple(map(float, share if self.merge else heaviest)))
        return Heads(self.groups[block], tuple(shares))

    def _head_maps(self, block: str, heads: Heads, measured: HeadMoments, kept: Mapping[str, Chosen]) -> HeadMaps:
        source = self.layers[block]
        weights, biases = (self.teacher_tensors[f"{source}.attn.qkv.{kind}"].chunk(3) for kind in ("weight", "bias"))
        out = self.teacher_tensors[f"{source}.attn.proj.weight"].t()
        if "stream" in kept:
            out = kept["stream"].of(out)
        if measured.query.count:
            moments = measured.query.second(), measured.key.covariance(), measured.output.covariance()
        else:  # of white inputs and uniform attention
            query, key, value = (w @ w.t() for w in weights)
            moments = query + biases[0][:, None] * biases[0], key, value
        rows = [self._head(group, share, moments, out) for group, share in zip(heads.groups, heads.shares)]
        query, key, value, back, share = map(torch.cat, zip(*rows))
        return HeadMaps(query, key, value, back.t(), share)

    def _head(
        self, group: Sequence[int], shares: Sequence[float], moments: tuple[Tensor, Tensor, Tensor], out: Tensor
    ) -> tuple[Tensor, ...]:
        """The rows of one student head in C_q, C_k, C_v, S^T and the shares."""
        d, d_student = self.head_widths
        members = [(i, s) for i, s in zip(group, shares) if self.merge or s]
        features = torch.tensor([i * d + j for i, _ in members for j in range(d)])
        share = torch.tensor([s for _, s in members], dtype=torch.float64)
        if len(members) == 1 and d == d_student:
            rows = (torch.eye(d, dtype=torch.float64),) * 4
        else:
            query, key, value = (moment[features][:, features] for moment in moments)
            c_q, c_k = squeezed_scores(query, key, share, d_student)
            c_v, back = squeezed_values(value, out[features], d_student)
            # each model divides its scores by the root of its own head width
            rows = c_q * (d_student / d) ** 0.5, c_k, c_v, back.t()
        head_share = _spread(share[None], torch.tensor([i for i, _ in members]), len(out) // d)
        return *(_spread(row, features, len(out)) for row in rows), head_share

    @torch.no_grad()
    def _copy_tables(self, kept: Mapping[str, Chosen], head_maps: Mapping[str, HeadMaps]) -> None:
        """Give the student its tables of positions, classes and biases."""
        tensors = self.student.state_dict()
        for name, space in TABLES.items():
            if name in tensors:
                table = self.teacher_tensors[name]
                tensors[name].copy_(kept[space].of(table) if space in kept else table)
        for block, source in self.layers.items():
            if f"{block}.{BIAS_TABLE}" in tensors:
                table = self.teacher_tensors[f"{source}.{BIAS_TABLE}"]
                tensors[f"{block}.{BIAS_TABLE}"].copy_(
                    table @ head_maps[block].share.t() if block in head_maps else table
                )

    def _weights(self, linear: LinearMap, kept: Mapping[str, Chosen], heads: HeadMaps | None) -> Weights:
        """The teacher's map that becomes a map of the student, with the student's outputs."""
        weight, bias = (self.teacher_tensors[f"{linear.source}.{kind}"] for kind in ("weight", "bias"))
        start = idle = None
        if linear.part == "attn.proj" and heads is not None:
            start = heads.back
        elif linear.reads in kept:
            start = kept[linear.reads].back(weight.shape[1] // self.widths[linear.reads])
        if linear.part == "attn.qkv" and heads is not None:
            c = torch.block_diag(heads.query, heads.key, heads.value)
            weight, bias, idle = c @ weight, c @ bias, heads.idle()
        elif linear.writes in kept:
            weight, bias = (kept[linear.writes].of(tensor, 0) for tensor in (weight, bias))
        return Weights(weight, bias, start, idle)


def head_width(model: nn.Module) -> int:
    """The width d of a model's heads."""
    return len(model.state_dict()["x_embedder.proj.bias"]) // shape_of(model).heads


def _is_identity(plan: Plan) -> bool:
    return plan == tuple((i,) for i in range(len(plan)))


def _spread(rows: Tensor, features: Tensor, count: int) -> Tensor:
    """Rows over some features as rows over all."""
    return rows.new_zeros(len(rows), count).index_copy(1, features, rows)
