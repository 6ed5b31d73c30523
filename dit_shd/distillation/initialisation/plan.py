"""The plan of an initialisation: layers, heads and channels that were chosen, printed and saved with the run."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dit_shd.squeezing.plans import Plan


@dataclass(frozen=True)
class Heads:
    """The heads of one student layer."""

    groups: Plan
    """The teacher heads of each student head."""
    shares: tuple[tuple[float, ...], ...]
    """Their shares in the student head's map."""

    def picked(self) -> list[int]:
        """The teacher head of the largest share in each student head."""
        return [group[shares.index(max(shares))] for group, shares in zip(self.groups, self.shares)]

    def lines(self) -> Iterator[str]:
        """Each student head in words."""
        for group, shares in zip(self.groups, self.shares):
            if max(shares) == 1:
                picked = group[shares.index(1)]
                yield str(picked) if len(group) == 1 else f"{picked} of {'+'.join(map(str, group))}"
            else:
                yield " + ".join(f"{share:.2f} x {head}" for head, share in zip(group, shares))


def merged(groups: Plan, weight: Tensor | None) -> Heads:
    """Heads that are merged by their weights [h] in the squeeze; by equal ones for None, and where all are 0."""
    shares = []
    for group in groups:
        of_group = torch.ones(len(group)) if weight is None else weight[list(group)]
        share = of_group / of_group.sum() if of_group.sum() > 0 else torch.full_like(of_group, 1 / len(group))
        shares.append(tuple(map(float, share)))
    return Heads(groups, tuple(shares))


@dataclass(frozen=True)
class InitialisationPlan:
    """Layers, heads and channels of the teacher that the student is made of."""

    layers: Mapping[str, str]
    """Student block -> teacher block."""
    heads: Mapping[str, Heads]
    """By student block, or by attention of the student; none where heads are copied one by one."""
    channels: Mapping[str, Sequence[int]]
    """The teacher's channels that the student keeps, by space (spaces.py), where it keeps fewer."""
    widths: Mapping[str, int]
    """The teacher's number of channels, by space."""

    def lines(self) -> Iterator[str]:
        """The plan in words."""
        for block, source in self.layers.items():
            yield f"{block} from {source}{''.join(self._heads_of(block))}"
        for space, kept in self.channels.items():
            yield f"{space}: {len(kept)} of {self.widths[space]} channels"

    def _heads_of(self, block: str) -> Iterator[str]:
        """The heads of the attentions of a block."""
        for name, heads in self.heads.items():
            if name == block or name.startswith(f"{block}."):
                attention = name.removeprefix(block).replace(".", " ")
                yield f";{attention} heads: {', '.join(heads.lines())}"

    def text(self) -> str:
        """The plan as JSON, one entry a line."""
        heads = {
            block: [{"of": of, "shares": [round(s, 6) for s in shares]} for of, shares in zip(h.groups, h.shares)]
            for block, h in self.heads.items()
        }
        sections = {"layers": self.layers, "heads": heads, "channels": self.channels}
        text = ",\n".join(f'"{name}": ' + _lines(entries) for name, entries in sections.items())
        return "{\n" + text + "\n}\n"


def _lines(entries: Mapping[str, object]) -> str:
    return "{" + ",".join(f"\n {json.dumps(k)}: {json.dumps(v)}" for k, v in entries.items()) + "\n}"
