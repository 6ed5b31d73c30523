"""From the teacher's weights to the student's: decide, look, write."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from dit_shd.distillation.initialisation import structure
from dit_shd.distillation.initialisation.heads import HeadMaps, squeezed_scores, squeezed_values
from dit_shd.distillation.initialisation.importance import most_important
from dit_shd.distillation.initialisation.moments import HeadMoments, student_moments, teacher_moments
from dit_shd.distillation.initialisation.plan import Heads, InitialisationPlan
from dit_shd.distillation.initialisation.regression import Chosen, Moments
from dit_shd.distillation.initialisation.structure import BIAS_TABLE, TABLES, LinearMap
from dit_shd.squeezing.plans import Plan
from dit_shd.squeezing.squeezer import Squeezer
from dit_shd.tasks import Batch, Task

Tensors = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Transfer:
    """One student and what it gets.

    Args:
        layers: student block -> teacher block. groups: student block -> the teacher heads of each of its heads.
        merge: merge the heads of a group; else the one with the largest weight in the squeeze stands for it.
        measured: keep the most telling channels; else the first ones.
    """

    student: nn.Module
    teacher: nn.Module
    layers: Mapping[str, str]
    groups: Mapping[str, Plan]
    merge: bool
    measured: bool

    def run(self, task: Task[Any], batches: Sequence[Batch], squeezer: Squeezer) -> InitialisationPlan:
        """Overwrite the student's weights; returns what was decided."""
        narrow = [site.source for site in self.sites if site.reads in self.narrower]
        read, found = teacher_moments(task.predict, self.teacher, batches, narrow, self.layers, self.squeezed, squeezer)
        kept = {space: self._keep(space, count, read) for space, count in self.narrower.items()}
        heads = {block: self._heads(block, found.get(block)) for block in self.layers}
        maps = {block: self._maps(block, heads[block], found[block], kept) for block in self.squeezed}
        fewer = [site for site in self.sites if site.reads in kept or (site.part == "attn.proj" and site.block in maps)]
        again: Mapping[str, Moments] = {}
        if fewer:
            again = student_moments(task.predict, self.teacher, batches, fewer, kept, maps, self.layers)
        self.student.load_state_dict({**self.student.state_dict(), **self._tensors(kept, maps, again)})
        channels = {space: list(chosen.index) for space, chosen in kept.items()}
        return InitialisationPlan(self.layers, heads, channels, self.widths)

    @cached_property
    def sites(self) -> list[LinearMap]:
        return list(structure.sites(self.student, self.layers))

    @cached_property
    def widths(self) -> dict[str, int]:
        """Space -> channels of the teacher."""
        return structure.widths(self.teacher, self.layers)

    @cached_property
    def narrower(self) -> dict[str, int]:
        """Space -> channels of the student, where it has fewer."""
        ours = structure.widths(self.student, {block: block for block in self.layers})
        return {space: count for space, count in ours.items() if count < self.widths[space]}

    @cached_property
    def head_width(self) -> tuple[int, int]:
        """d of the teacher and of the student."""
        return head_width(self.teacher), head_width(self.student)

    @cached_property
    def squeezed(self) -> dict[str, Plan]:
        """The groups of the layers whose heads cannot be copied one by one."""
        d, ours = self.head_width
        alike = [block for block, plan in self.groups.items() if d == ours and _in_order(plan)]
        return {block: plan for block, plan in self.groups.items() if block not in alike}

    @cached_property
    def old(self) -> Tensors:
        """The teacher's tensors in float64."""
        return {name: tensor.detach().cpu().double() for name, tensor in self.teacher.state_dict().items()}

    def _keep(self, space: str, count: int, read: Mapping[str, Moments]) -> Chosen:
        width = self.widths[space]
        if not self.measured:
            return Chosen(tuple(range(count)), width)
        seen: list[tuple[Tensor, Tensor]] = []
        for site in self.sites:
            if site.reads == space:
                weight, moments = self.old[f"{site.source}.weight"], read[site.source]
                covariance = moments.covariance() if moments.count else torch.eye(weight.shape[1]).double()
                for first in range(0, weight.shape[1], width):  # the copies of the space, each by itself
                    part = slice(first, first + width)
                    seen.append((covariance[part, part], weight[:, part]))
        return Chosen(most_important(count, seen), width)

    def _heads(self, block: str, found: HeadMoments | None) -> Heads:
        """Groups, and shares in them: by the weights of the squeeze, where it was seen."""
        shares = []
        for group in self.groups[block]:
            weight = torch.ones(len(group)) if found is None else found.weight[list(group)]
            share = weight / weight.sum() if weight.sum() > 0 else torch.full_like(weight, 1 / len(group))
            picked = torch.nn.functional.one_hot(share.argmax(), len(group))
            shares.append(tuple(map(float, share if self.merge else picked)))
        return Heads(self.groups[block], tuple(shares))

    def _maps(self, block: str, heads: Heads, found: HeadMoments, kept: Mapping[str, Chosen]) -> HeadMaps:
        source = self.layers[block]
        weights, biases = (self.old[f"{source}.attn.qkv.{kind}"].chunk(3) for kind in ("weight", "bias"))
        out = self.old[f"{source}.attn.proj.weight"].t()
        if "stream" in kept:
            out = kept["stream"].of(out)
        if found.query.count:
            moments = found.query.second(), found.key.covariance(), found.result.covariance()
        else:  # as if the layer read white noise and attended alike everywhere
            query, key, value = (w @ w.t() for w in weights)
            moments = query + biases[0][:, None] * biases[0], key, value
        each = [self._head(group, share, moments, out) for group, share in zip(heads.groups, heads.shares)]
        query, key, value, back, share = (torch.cat(rows) for rows in zip(*each))
        return HeadMaps(query, key, value, back.t(), share)

    def _head(
        self, group: Sequence[int], shares: Sequence[float], moments: tuple[Tensor, Tensor, Tensor], out: Tensor
    ) -> tuple[Tensor, ...]:
        """The rows of C_q, C_k, C_v and S^T, and of the shares, that make one student head."""
        d, ours = self.head_width
        members = [(i, s) for i, s in zip(group, shares) if self.merge or s]
        features = torch.tensor([i * d + j for i, _ in members for j in range(d)])
        share = torch.tensor([s for _, s in members], dtype=torch.float64)
        if len(members) == 1 and d == ours:
            rows = (torch.eye(d, dtype=torch.float64),) * 4
        else:
            query, key, value = (moment[features][:, features] for moment in moments)
            c_q, c_k = squeezed_scores(query, key, share, ours)
            c_v, back = squeezed_values(value, out[features], ours)
            # each model divides its scores by the root of its own head width
            rows = c_q * (ours / d) ** 0.5, c_k, c_v, back.t()
        of_head = _spread(share[None], torch.tensor([i for i, _ in members]), len(out) // d)
        return *(_spread(row, features, len(out)) for row in rows), of_head

    def _tensors(
        self, kept: Mapping[str, Chosen], maps: Mapping[str, HeadMaps], again: Mapping[str, Moments]
    ) -> Tensors:
        """The student's new tensors in float64."""
        own, new = self.student.state_dict(), Tensors()
        for name, space in TABLES.items():
            if name in own:
                new[name] = kept[space].of(self.old[name]) if space in kept else self.old[name]
        for site in self.sites:
            weight, bias = self.old[f"{site.source}.weight"], self.old[f"{site.source}.bias"]
            squeezed = maps.get(site.block)
            start: Tensor | None = None
            if site.part == "attn.qkv" and squeezed is not None:
                whole = torch.block_diag(squeezed.query, squeezed.key, squeezed.value)
                weight, bias = whole @ weight, whole @ bias
            elif site.writes in kept:
                weight, bias = (kept[site.writes].of(tensor, 0) for tensor in (weight, bias))
            if site.part == "attn.proj" and squeezed is not None:
                start = squeezed.back
            elif site.reads in kept:
                start = kept[site.reads].back(weight.shape[1] // self.widths[site.reads])
            if start is not None:
                weight, bias = again[site.name].reading(start).through(weight, bias)
            if site.part == "attn.qkv" and squeezed is not None:
                weight = _awake(weight, own[f"{site.name}.weight"].cpu(), squeezed)
            new[f"{site.name}.weight"], new[f"{site.name}.bias"] = weight, bias
        for block, source in self.layers.items():
            if f"{block}.{BIAS_TABLE}" in own:
                table = self.old[f"{source}.{BIAS_TABLE}"]
                new[f"{block}.{BIAS_TABLE}"] = table @ maps[block].share.t() if block in maps else table
        return new


def head_width(model: Any) -> int:
    """d"""
    return len(model.state_dict()["x_embedder.proj.bias"]) // model.config.num_attention_heads


def _in_order(plan: Plan) -> bool:
    return plan == tuple((i,) for i in range(len(plan)))


def _spread(rows: Tensor, features: Tensor, count: int) -> Tensor:
    """Rows over some features as rows over all."""
    return rows.new_zeros(len(rows), count).index_copy(1, features, rows)


def _awake(weight: Tensor, own: Tensor, maps: HeadMaps) -> Tensor:
    """Features that a wider student head has beyond the group's rank keep their own random queries and values.

    Their keys, and what W^O makes of their values, are zero, so they change nothing yet; with all of them zero no
    gradient would ever reach them.
    """
    query, key, value = ((c == 0).all(1) for c in (maps.query, maps.key, maps.value))
    idle = torch.cat([query, torch.zeros_like(key), value])
    return torch.where(idle[:, None], own.double(), weight)
