"""Weight selection (Xu et al. 2023, arXiv 2311.18823): a narrower student's tensors are sub-tensors of its teacher's.

Of every space (axes.py) some channels are kept, the same in all tensors that share it: of the residual stream evenly
spaced ones, so that tables of sines keep their frequencies; one head of each group of the squeeze; the hidden units of
the largest weights. Heads of another width, or merged ones, are mixed (heads.py) by moments on calibration batches; all
else uses the weights alone. refit.py then fits the maps to what they read.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from dit_shd.core.errors import UserError
from dit_shd.distillation.initialisation.axes import axes
from dit_shd.distillation.initialisation.depth import module_of, source_of
from dit_shd.distillation.initialisation.folding import folded
from dit_shd.distillation.initialisation.heads import HeadMaps, head_maps, white_moments
from dit_shd.distillation.initialisation.layouts import is_map
from dit_shd.distillation.initialisation.moments import HeadMoments
from dit_shd.distillation.initialisation.plan import Heads, InitialisationPlan, merged
from dit_shd.distillation.initialisation.refit import CutMap, Weights
from dit_shd.distillation.initialisation.spaces import STREAM, Axes, Axis, Space
from dit_shd.models.quantization import dequantised
from dit_shd.squeezing.plans import Plan, contiguous
from dit_shd.squeezing.squeezer import Squeezer

EXPERTS = "experts"
"""A list of networks of which each is given some tokens."""


@dataclass(frozen=True)
class Selection:
    """Selects the weights of one student from its teacher.

    Args:
        student: Whose weights are overwritten.
        teacher: A teacher of the same class.
        layers: Student block -> teacher block.
        squeezer: For the groups of heads.
        by_weights: Whether to keep the heads and hidden units of the largest weights; else the first.
        weights: The teacher's tensors, where it holds rounded ones; None: its own.
        merge: Whether to merge the heads of a group, rather than to keep one.
        moments: Of the heads that are mixed, by attention; without them inputs count as white and shares as equal.
    """

    student: nn.Module
    teacher: nn.Module
    layers: Mapping[str, str]
    squeezer: Squeezer
    by_weights: bool = True
    weights: Mapping[str, Tensor] | None = None
    merge: bool = False
    moments: Mapping[str, HeadMoments] = field(default_factory=dict)

    @torch.no_grad()
    def run(self) -> InitialisationPlan:
        """Overwrite the student's weights.

        Returns:
            The layers, heads and channels that were chosen.
        """
        for name, tensor in self.student.state_dict().items():
            value, idle = self.selected(name), self._idle(name)
            if idle is not None:
                value = torch.where(self.turned(name, idle), tensor.cpu(), value)
            tensor.copy_(value)
        return self.plan()

    @torch.no_grad()
    def plan(self) -> InitialisationPlan:
        """The layers, heads and channels that are chosen; the student may be without weights."""
        channels = {n: kept.tolist() for n, kept in self.kept.items() if self.axes[n].kind in (STREAM, "hidden")}
        widths = {name: space.teacher for name, space in self.axes.spaces.items()}
        return InitialisationPlan(self.layers, self.heads, channels, widths)

    def cut_maps(self) -> dict[str, CutMap]:
        """The student's linear maps that read less than their teacher's and can be refitted.

        A head that is the embedding, too, is none of them: another reading of the last block is another embedding. Nor
        is an expert's: a gate gives it other tokens than the teacher's.
        """
        uses = Counter(id(p) for _, p in self.student.named_parameters(remove_duplicate=False))
        maps: dict[str, CutMap] = {}
        for name, module in self.student.named_modules():
            weight: Any = module.weight if is_map(module) and EXPERTS not in name.split(".") else None
            if weight is not None and uses[id(weight)] == 1 and self.axes.of[f"{name}.weight"][1]:
                maps[name] = CutMap(module_of(name, self.layers), partial(self._weights, name))
        return maps

    def _weights(self, name: str) -> Weights:
        """The teacher's map that becomes a map of the student, its outputs selected."""
        rows, columns = self.axes.of[f"{name}.weight"]
        weight = self.source(f"{name}.weight")
        mixed = self._maps_of(columns)
        start = torch.eye(weight.shape[1], dtype=torch.float64)[:, self.index(columns)] if mixed is None else mixed.back
        module: Any = self.student.get_submodule(name)
        bias = None if module.bias is None else self.selected(f"{name}.bias")
        return Weights(self._part(weight, 0, rows), bias, start, self._idle(f"{name}.weight"))

    def selected(self, name: str) -> Tensor:
        """The part of the teacher's tensor that becomes the student's tensor `name`, as that is kept."""
        tensor = self.source(name)
        for dim, axis in enumerate(self.axes.of[name]):
            tensor = self._part(tensor, dim, axis)
        return self.turned(name, tensor)

    def _part(self, tensor: Tensor, dim: int, axis: Axis) -> Tensor:
        """What the student has of one axis of a tensor."""
        mixed = self._maps_of(axis)
        if mixed is not None:
            return mixed.of(tensor, dim, axis[0][0].endswith(".tables"))
        return tensor.index_select(dim, self.index(axis).to(tensor.device)) if axis else tensor

    def index(self, axis: Axis) -> Tensor:
        """The teacher's entries that the student keeps of an axis."""
        start, parts = 0, list[Tensor]()
        for space, copies in axis:
            width = self.axes[space].teacher
            kept = self.kept.get(space, torch.arange(width))
            parts += [start + copy * width + kept for copy in range(copies)]
            start += copies * width
        return torch.cat(parts)

    @cached_property
    def axes(self) -> Axes:
        """The spaces of both models."""
        return axes(self.student, self.teacher, self.layers)

    @cached_property
    def narrowed(self) -> dict[str, Space]:
        """The spaces of which the student has fewer channels."""
        return {name: space for name, space in self.axes.spaces.items() if space.is_narrower}

    @cached_property
    def kept(self) -> dict[str, Tensor]:
        """The teacher's channels that the student keeps, by space, where it keeps fewer."""
        return {name: self._kept(space) for name, space in self.narrowed.items()}

    def _kept(self, space: Space) -> Tensor:
        if space.kind == "heads":
            return _features(self.heads[space.module].picked(), space.unit)
        if space.kind == "keys":
            return _features(self._key_heads(space), space.unit)
        if space.kind == "tables":
            return torch.tensor(self.heads[space.module].picked())
        if space.kind == STREAM:
            return torch.arange(space.student) * space.teacher // space.student
        if not self.by_weights:
            return torch.arange(space.student)
        return self._scores(space).topk(space.student).indices.sort().values.cpu()

    def check_groups(self) -> None:
        """Refuse heads that make no groups, or cannot be merged; the models may be without weights.

        Raises:
            UserError: The student has more heads of queries to a head of keys than its teacher, or heads are to be
                merged whose features cannot be mixed.
        """
        fixed = next((x for x in self.narrowed.values() if x.kind == "heads" and not x.mixable), None)
        if self.merge and fixed is not None:
            raise UserError(
                "initialisation.heads: heads are merged in MDTv2, DiT, GPT-2 and ViT without norms of queries; of "
                f"{fixed.module} one of each group can be kept: initialisation.heads=pick"
            )
        for keys in (space for space in self.axes.spaces.values() if space.kind == "keys"):
            heads = self.axes[f"{keys.module}.heads"]
            if heads.student * keys.teacher > heads.teacher * keys.student:
                teacher, student = (f"{h} heads and {k} of keys" for h, k in zip(heads.counts, keys.counts))
                raise UserError(
                    f"initialisation: {keys.module} has {student} in the student, and {teacher} in the teacher; a head "
                    f"of keys is kept with its {heads.teacher // keys.teacher} heads of queries, or fewer of them"
                )

    @cached_property
    def heads(self) -> dict[str, Heads]:
        """The groups of each attention that has fewer heads in the student, with one head picked of each."""
        return {space.module: self._grouped(space) for space in self.narrowed.values() if space.kind == "heads"}

    def _grouped(self, space: Space) -> Heads:
        groups = self._groups(space)
        if self.merge:
            measured = self.moments.get(space.module)
            return merged(groups, None if measured is None else measured.weight)
        picked = self._heaviest(groups, self._scores(space))
        return Heads(groups, tuple(tuple(float(i == one) for i in group) for group, one in zip(groups, picked)))

    def _groups(self, space: Space) -> Plan:
        """The teacher heads of each student head: by the squeeze, or of the key-value heads that are kept."""
        heads, student_heads = space.counts
        shared = self.axes.spaces.get(f"{space.module}.keys")
        if shared is None:
            return self.squeezer.groups(space.module, heads, student_heads)
        keys, each = self._key_heads(shared), space.teacher // shared.teacher
        queries = contiguous(each, student_heads // len(keys))
        return tuple(tuple(key * each + i for i in group) for key in keys for group in queries)

    def _key_heads(self, space: Space) -> list[int]:
        """The key-value heads that are kept: of each group the one whose query heads have the largest weights."""
        heads, student_heads = space.counts
        scores = self._scores(self.axes[f"{space.module}.heads"]).unflatten(0, (heads, -1)).sum(1)
        return self._heaviest(contiguous(heads, student_heads), scores)

    @cached_property
    def mixed(self) -> list[Space]:
        """The heads whose features are mixed: of another width, or merged."""
        narrowed = [space for space in self.narrowed.values() if space.kind == "heads"]
        return [space for space in narrowed if self.merge or space.unit != space.student_unit]

    @cached_property
    def head_maps(self) -> dict[str, HeadMaps]:
        """The maps of the heads that are mixed, by attention."""
        return {space.module: self._head_maps(space) for space in self.mixed}

    def _head_maps(self, space: Space) -> HeadMaps:
        fused = next(name for name, _, copies in self.axes.standing(space, 0) if copies == 3)
        reader = next(name for name, _, _ in self.axes.standing(space, 1))
        out = self._part(self.source(reader), 0, self.axes.of[reader][0]).t().double().cpu()
        measured = self.moments.get(space.module)
        if measured is not None:
            moments = measured.moments()
        else:
            weight, bias = self.source(fused), self._available.get(source_of(f"{fused[:-6]}bias", self.layers))
            moments = white_moments(weight.double().cpu(), None if bias is None else bias.double().cpu())
        return head_maps(self.heads[space.module], moments, out, space.unit, space.student_unit)

    def _maps_of(self, axis: Axis) -> HeadMaps | None:
        """The maps of mixed heads, where an axis is of such."""
        space = self.axes[axis[0][0]] if axis else None
        return self.head_maps.get(space.module) if space is not None and space.kind in ("heads", "tables") else None

    def _idle(self, name: str) -> Tensor | None:
        """The outputs of a map whose weights stay random: features beyond the rank of the heads they are mixed of."""
        mixed = self._maps_of(self.axes.of[name][0]) if self.axes.of[name] else None
        if mixed is None or not name.endswith(".weight"):
            return None
        return mixed.idle()[:, None]

    def _heaviest(self, groups: Plan, scores: Tensor) -> list[int]:
        """One of each group: of the largest score, or the first."""
        return [max(group, key=lambda i: float(scores[i])) if self.by_weights else group[0] for group in groups]

    def _scores(self, space: Space) -> Tensor:
        """|W_O W_V|^2 of every head, or hidden unit: by what it is written from, and what it writes."""
        values = self.axes.spaces.get(f"{space.module}.keys", space)
        readers = [self._gram(*at, space, 1) for at in self.axes.standing(space, 1)]
        writers = [
            self._gram(*at, values, 0)
            for at in self.axes.standing(values, 0)
            if space.kind != "heads" or at[0] in self.axes.values
        ]
        read, written = sum(readers[1:], readers[0]), sum(writers[1:], writers[0])
        return (read * written.repeat_interleave(len(read) // len(written), 0)).sum((1, 2))

    def _gram(self, name: str, start: int, copies: int, space: Space, dim: int) -> Tensor:
        """Products of the features of each unit [units,u,u], over all that they are read by, or written from."""
        rows = self.source(name).transpose(0, dim)[start : start + copies * space.teacher].float()
        rows = rows.reshape(copies, -1, space.unit, rows[0].numel())
        if space.kind != "hidden" and dim == 0:  # of queries, keys and values
            rows = rows[-1:]
        return torch.einsum("cnuo,cnvo->nuv", rows, rows)

    def source(self, name: str) -> Tensor:
        """The teacher's tensor that a student's comes from; of a map the outputs first."""
        return self.turned(name, dequantised(self._available[source_of(name, self.layers)]))

    def turned(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor with the outputs first from one as it is kept, and the other way round."""
        return tensor.t() if name in self.axes.transposed else tensor

    @cached_property
    def _available(self) -> Mapping[str, Tensor]:
        return folded(self.student, self.teacher, self.weights)


def _features(heads: list[int], unit: int) -> Tensor:
    """The features of some heads."""
    return (torch.tensor(heads)[:, None] * unit + torch.arange(unit)).flatten()
