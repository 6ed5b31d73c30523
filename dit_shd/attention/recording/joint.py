"""Joint text-image attention: which tokens are the image's, and the part of the map that is wanted.

Text and image tokens stand in one sequence, and a map has four blocks. Image queries and text queries may have
projections W^O of their own; the whole joint map is then two Captures, `NAME` (image queries over all keys) and
`NAME:text`, each with its own weights.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from dit_shd.attention.bias import DenseBias
from dit_shd.attention.capture import IMAGE, Capture
from dit_shd.attention.recording.discovery import NO_PROJECTION
from dit_shd.attention.recording.projection import Projection
from dit_shd.attention.recording.results import Part
from dit_shd.attention.recording.roles import Order, Role, TextLength
from dit_shd.attention.recording.sdpa_calls import Call
from dit_shd.attention.recording.writes import Mark, marks_of
from dit_shd.core.errors import UserError

Block = Literal["joint", "image", "image-text", "text-image"]
"""Queries-keys; `image` is image queries over image keys. A block of a map is renormalised over its keys."""


@dataclass(frozen=True)
class BlockChoice:
    """The block of a joint map that is wanted; image: where the image's tokens stand, if the model does not tell."""

    block: Block = "joint"
    image: slice | None = None

    def __post_init__(self) -> None:
        if self.block not in get_args(Block):
            raise UserError(f"capture: block: wanted one of {', '.join(get_args(Block))}, found '{self.block}'")


@dataclass(frozen=True, eq=False)
class Layout:
    """What is known of an attention layer's sequence: whose projection is where, and what is joined with what."""

    projections: tuple[Projection | None, ...]
    """One for all tokens, or one for each of two runs of tokens, in order; None for a run that arrives nowhere (the
    text of a last block, say). Empty if no row arrives anywhere unchanged, or if nobody asked."""
    order: Order
    role: Role = "self"
    square: bool = True
    """Whether there are as many keys as queries."""
    text: TextLength | None = None
    """How many tokens are text, in a joint sequence."""
    reason: str = NO_PROJECTION
    """Why there is no projection, where there is none."""
    overwritten: bool = False
    """Whether what attention gave is changed in place afterwards, and so not at hand."""

    @property
    def unasked(self) -> bool:
        """Whether it is not recorded unless it is named."""
        return self.role in ("cross", "pooling") or (self.role == "unknown" and not self.square)

    def same(self, other: "Layout") -> bool:
        """Whether another call is as this one."""

        def rest(x: Layout) -> tuple[object, ...]:
            return x.order, x.role, x.square, x.text, x.overwritten, len(x.projections)

        pairs = zip(self.projections, other.projections)
        return rest(self) == rest(other) and all(b is None if a is None else a.same(b) for a, b in pairs)


class Biases:
    """The masks of one forward as biases; layers that share a mask share its bias."""

    def __init__(self) -> None:
        self._known: dict[tuple[Mark, ...], tuple[torch.Tensor, DenseBias]] = {}

    def of(self, mask: torch.Tensor | None) -> DenseBias | None:
        """The bias of a mask, which is kept, so that no other one gets its id."""
        if mask is None:
            return None
        return self._known.setdefault((id(mask), *marks_of(mask)), (mask, DenseBias(mask)))[1]

    def clear(self) -> None:
        """Another forward begins."""
        self._known.clear()


def projections_of(parts: Sequence[Part]) -> list[tuple[int, Projection]]:
    """The projections at which a sequence arrived, in order, each with the first token that arrived there."""
    runs: list[tuple[int, Projection]] = []
    for part in parts:
        if not any(part.projection.same(projection) for _, projection in runs):
            runs.append((int(part.tokens[0]), part.projection))
    return runs


def edge_of(parts: Sequence[Part]) -> tuple[int, int] | None:
    """The last token at the first of two projections and the first one at the second, if each has a run of its own."""
    runs = projections_of(parts)
    if len(runs) != 2:
        return None
    first, second = (torch.cat([x.tokens for x in parts if x.projection.same(of)]) for _, of in runs)
    last, begin = int(first.max()), int(second.min())
    return (last, begin) if last < begin else None


def with_gaps(parts: Sequence[Part], n: int, order: Order, text: int) -> tuple[Projection | None, ...]:
    """The projections of n tokens, in order: None for a side of a joint sequence that arrived nowhere.

    None at all if there are several, other than one of the text and one of the image.
    """
    runs = projections_of(parts)
    projections: list[Projection | None] = [projection for _, projection in runs]
    if len(runs) > 1:
        between, edge = edge_of(parts), {"text first": text, "image first": n - text}.get(order)
        apart = between is not None and (edge is None or between[0] < edge <= between[1])
        return tuple(projections) if apart else ()
    claimed = torch.cat([part.tokens for part in parts]) if parts else torch.arange(n)
    if len(runs) == 1 and len(claimed) < n and order in ("text first", "image first"):
        edge = text if order == "text first" else n - text
        start, stop = int(claimed.min()), int(claimed.max()) + 1
        if stop - start == len(claimed) and edge in (start, stop):
            projections = [None, *projections] if start else [*projections, None]
    return tuple(projections)


def sections(
    call: Call, bias: DenseBias | None, layout: Layout, text: int | None, choice: BlockChoice
) -> Iterator[tuple[str, Capture]]:
    """The Captures of one call, each with what is to be added to its layer's name; none where it lacks the block.

    Args:
        call: Of the layer.
        bias: Its mask, as a bias.
        layout: What is known of it.
        text: The number of text tokens in the sequence, if it is joint.
        choice: The block that is wanted.

    Raises:
        UserError: A block is wanted, and where the image's tokens stand is not known.
    """
    n, m = call.query.shape[2], call.key.shape[2]
    rows, keys = slice(0, n), slice(0, m)
    projections, reason = layout.projections, layout.reason
    split = _split(n, layout, text, choice) if m == n else None
    if split is None:
        if len(projections) > 1 or (choice.block != "joint" and layout.order == "unknown"):
            raise UserError(f"where the image stands among its {n} tokens is not known; say it: {IMAGE}")
        if choice.block == "joint":
            where = slice(0, 0) if m == n and layout.order != "plain" else None
            yield "", _cut(call, bias, rows, keys, projections[0] if projections else None, reason, where)
        return
    image, words = split
    roles = ("text", "image") if words.start < image.start else ("image", "text")
    by_role: dict[str, Projection | None] = dict(zip(roles, projections * 2 if len(projections) == 1 else projections))
    if choice.block != "joint":
        queries, over = _BLOCKS[choice.block]
        at = {"image": image, "text": words}
        if not by_role or by_role[queries] is not None or queries == "image":
            yield "", _cut(call, bias, at[queries], at[over], by_role.get(queries), reason)
    elif len(projections) < 2:
        yield "", _cut(call, bias, rows, keys, projections[0] if projections else None, reason, image)
    else:
        yield "", _cut(call, bias, image, keys, by_role["image"], reason, image)
        if by_role["text"] is not None:
            yield ":text", _cut(call, bias, words, keys, by_role["text"], reason)


_BLOCKS = {
    "image": ("image", "image"),
    "image-text": ("image", "text"),
    "text-image": ("text", "image"),
}


def _split(n: int, layout: Layout, text: int | None, choice: BlockChoice) -> tuple[slice, slice] | None:
    """Where image and text stand among n tokens."""
    known = None
    if text is not None and 0 < text < n and layout.order not in ("plain", "unknown"):
        first = layout.order == "text first"
        known = (slice(text, n), slice(0, text)) if first else (slice(0, n - text), slice(n - text, n))
    if choice.image is None:
        return known
    start, stop, step = choice.image.indices(n)
    if step != 1 or start >= stop or (start > 0 and stop < n):
        raise UserError(f"capture: image: wanted a run at one end of {n} tokens, found {choice.image}")
    if known is not None and slice(start, stop) != known[0]:
        raise UserError(
            f"capture: image: the model says that its image is tokens {known[0].start} to {known[0].stop - 1} of {n}, "
            f"found {choice.image}, which are {start} to {stop - 1}; leave it out"
        )
    return slice(start, stop), slice(0, start) if start else slice(stop, n)


def _cut(
    call: Call,
    bias: DenseBias | None,
    rows: slice,
    keys: slice,
    projection: Projection | None,
    reason: str,
    image: slice | None = None,
) -> Capture:
    """A block of a call's map; `reason` is why there is no projection, `image` which of all keys are the image's."""
    _, h, n, _ = call.query.shape
    m, d = call.value.shape[2:]
    every_row, every_key = rows == slice(0, n), keys == slice(0, m)
    if call.causal and not every_key:
        raise UserError("a block of a causal map is not supported; capture the whole map (block='joint')")
    if bias is not None and not (every_row and every_key):
        bias = bias.block(rows, keys)
    key, value = (call.key, call.value) if every_key else (call.key[:, :, keys], call.value[:, :, keys])
    return Capture(
        call.query if every_row else call.query[:, :, rows],
        key,
        value,
        call.scale,
        bias,
        call.causal,
        reason if projection is None else projection.source(h, d),
        call.mixed[:, :, rows] if call.mixed is not None and every_key else None,
        torch.arange(rows.start, rows.stop, device=call.query.device) if call.causal and not every_row else None,
        image,
        call.share,
    )
