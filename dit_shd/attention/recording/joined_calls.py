"""The calls that one run of an attention module makes, as one call where each is a part of what the module does.

Modules save memory by taking their queries in chunks, take samples one at a time, or take each of the images or
documents that lie in one packed sequence by itself. Each call taken for a layer, a loss over layers would be as many
times too large.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_shd.attention.recording.heads import check_heads
from dit_shd.attention.recording.sdpa_calls import Call
from dit_shd.attention.recording.storage import storage
from dit_shd.attention.recording.tokens import Tokens

Spans = tuple[tuple[int, int, int], ...]
"""Of each call: its query rows, and the first and the last key (excluded) that they see."""
_SEEN: "WeakValueDictionary[tuple[Spans, torch.device], Tensor]" = WeakValueDictionary()
"""Masks that somebody holds: layers that are packed alike share one."""


def joined(calls: Sequence[Call], tokens: Tokens) -> list[Call]:
    """The calls of one run of a module, as one where they are parts of one.

    Args:
        calls: In order.
        tokens: What the module was given.

    Returns:
        In most cases one; samples of unlike lengths, one at a time, stay apart, and each is a share of the layer.

    Raises:
        ValueError: Each call has some of the heads, heads are not where they belong, or rows of which it is not known
            where they stand.
    """
    check_heads([x.query for x in calls], [x.value for x in calls], tokens)
    if len(calls) < 2:
        return list(calls)
    _refuse_heads(calls, tokens)
    kinds = {(x.query.shape[1::2], x.value.shape[1::2], x.scale, x.mixed is None) for x in calls}
    batches = {len(x.query) for x in calls}
    if len(kinds) > 1:
        return list(calls)
    known = _union(calls) if len(batches) == 1 and _follow(calls, tokens) else None
    if known is not None and all(x.key.shape[2] == known[0].shape[2] for x in calls):
        return [_of_rows(calls, *known)]  # chunks of queries, each over all keys
    groups = _by_keys(calls)
    if 1 < len(groups) < len(calls) and sum(len(each[0].query) for each in groups) == tokens.samples:
        return joined([_of_rows(each, each[0].key, each[0].value, [0] * len(each)) for each in groups], tokens)
    samples = sum(len(x.query) for x in calls)
    if samples == tokens.samples or _are_slices(calls, tokens):  # parts of the batch, or of frames in it
        same = len({(x.query.shape[2], x.key.shape[1:3], x.causal, _shape(x.mask)) for x in calls}) == 1
        return [_of_samples(calls)] if same else [replace(x, share=len(x.query) / samples) for x in calls]
    if len(batches) > 1 or not _are_all([x.query for x in calls], tokens):
        return list(calls)
    if known is None and all(x.query.shape[2] == x.key.shape[2] for x in calls):  # packed, each with memory of its own
        starts = [0, *accumulate(x.key.shape[2] for x in calls)][:-1]
        key, value = (torch.cat([getattr(x, part) for x in calls], 2) for part in ("key", "value"))
        return [_of_rows(calls, key, value, starts, packed=True)]
    return list(calls) if known is None else [_of_rows(calls, *known)]


def _refuse_heads(calls: Sequence[Call], tokens: Tokens) -> None:
    """Refuse calls of which each has some of the heads, of all tokens that the module was given."""
    first = calls[0]
    shapes = {(len(x.query), *x.query.shape[2:], *x.key.shape[2:]) for x in calls}
    if len(shapes) > 1 or not _are_all([first.query], tokens):
        return
    for part in ("query", "value"):
        given: list[Tensor] = [getattr(x, part) for x in calls]
        one = {(storage(x), x.stride()[2:]) for x in given}
        if len(one) > 1 or len({x.storage_offset() for x in given}) < len(given):
            return
    raise ValueError(
        f"its heads come in {len(calls)} calls of scaled_dot_product_attention, and a map of a layer is of all; give "
        f"it all heads at once (the first call has {first.query.shape[1]})"
    )


def _by_keys(calls: Sequence[Call]) -> list[list[Call]]:
    """Calls that come one after the other over the very same keys and values: chunks of a sample's queries."""
    groups: list[list[Call]] = []
    for call in calls:
        last = groups[-1][0] if groups else call
        same = all(
            _start(x, y) == 0 and x.shape == y.shape for x, y in ((call.key, last.key), (call.value, last.value))
        )
        if groups and same:
            groups[-1].append(call)
        else:
            groups.append([call])
    return groups


def _are_slices(calls: Sequence[Call], tokens: Tokens) -> bool:
    """Whether calls are slices of one batch of frames or windows, one after the other in memory: all of them."""
    every, b = next((n for n, _ in tokens.sizes), 0), tokens.samples or 1
    several = tokens.frames is not None or 1 < b < every  # else they are documents of one sequence
    if not several or sum(len(x.query) * x.query.shape[2] for x in calls) != every:
        return False
    for part in ("query", "key", "value"):
        pieces: list[Tensor] = [getattr(x, part) for x in calls]
        if len({(storage(x), x.stride()) for x in pieces}) == 1 and all(
            x.shape[2] > 1 and y.storage_offset() - x.storage_offset() == len(x) * x.stride(0)
            for x, y in pairwise(pieces)
        ):
            return True
    return False


def _follow(calls: Sequence[Call], tokens: Tokens) -> bool:
    """Whether the queries of calls are one sequence: as many as there are tokens, or one after the other in memory."""
    queries = [x.query for x in calls]
    if sum(query.shape[2] for query in queries) == max(x.key.shape[2] for x in calls) or _are_all(queries, tokens):
        return True
    rows = len(queries[0]) * sum(query.shape[2] for query in queries)
    one_head_each = rows > max((n for n, _ in tokens.sizes), default=rows)
    return not one_head_each and all(_start(b, a) == a.shape[2] for a, b in pairwise(queries))


def _are_all(queries: Sequence[Tensor], tokens: Tokens) -> bool:
    """Whether some queries are together the tokens that the module was given, each once."""
    return len(queries[0]) * sum(query.shape[2] for query in queries) in [n for n, _ in tokens.sizes]


def _start(part: Tensor, whole: Tensor) -> int | None:
    """The token of [b,h,n,d] at which another tensor begins, if it is tokens of the same memory."""
    if part is whole:
        return 0
    step, away = whole.stride(2), part.storage_offset() - whole.storage_offset()
    if storage(part) != storage(whole) or part.stride() != whole.stride() or not step or away % step:
        return None
    return int(away // step)


def _union(calls: Sequence[Call]) -> tuple[Tensor, Tensor, list[int]] | None:
    """Keys and values of all calls, if theirs are runs of the same memory without gaps; and where each begins."""
    first = calls[0]
    places = [(_start(x.key, first.key), _start(x.value, first.value)) for x in calls]
    starts = [key for key, value in places if key is not None and key == value]
    if len(starts) < len(calls):
        return None
    begin = end = min(starts)
    parts: list[tuple[Tensor, Tensor]] = []
    for start, call in sorted(zip(starts, calls), key=lambda each: (each[0], -each[1].key.shape[2])):
        stop = start + call.key.shape[2]
        if start > end:
            return None
        if stop > end:
            parts.append((call.key[:, :, end - start :], call.value[:, :, end - start :]))
            end = stop
    key, value = (x[0] if len(x) == 1 else torch.cat(x, 2) for x in zip(*parts))
    return key, value, [start - begin for start in starts]


def places_of_rows(calls: Sequence[Call]) -> list[Tensor]:
    """Where the query rows of each call stand among those of all, which are joined."""
    lengths, order = [x.query.shape[2] for x in calls], _order_of_rows(calls)
    ranks = torch.arange(sum(lengths), device="cpu") if order is None else order.argsort()
    return list(ranks.split(lengths))


def _order_of_rows(calls: Sequence[Call]) -> Tensor | None:
    """The query rows of all calls as they stand in memory, by their numbers as they come; None if that is the same.

    Queries with memory of their own stand where their keys do, if each is a key, too; else as they come.

    Raises:
        ValueError: They share memory, and their order in it is not known.
    """
    if len(calls) < 2:
        return None
    square = all(x.query.shape[2] == x.key.shape[2] for x in calls)
    for part in ("query", "key", "value") if square else ("query",):
        pieces: list[Tensor] = [getattr(x, part) for x in calls]
        if len({storage(x) for x in pieces}) > 1:
            continue
        starts = _ranges(pieces, 2)
        order = None if starts is None else _sorted(starts)
        if order is None:
            raise ValueError(
                f"its {part} rows come in {len(calls)} calls of scaled_dot_product_attention out of one memory, and "
                "where they stand in it is not known; take them in order, as slices that do not overlap"
            )
        return None if order.equal(torch.arange(len(order), device="cpu")) else order
    return None


def _ranges(pieces: Sequence[Tensor], dim: int) -> list[range] | None:
    """Where what each piece of one memory has in a dimension begins in it; None if they are laid out unlike."""
    others = [k for k in range(4) if k != dim]
    if len({tuple(x.stride(k) * (x.shape[k] > 1) for k in others) for x in pieces}) > 1:
        return None
    steps = [x.stride(dim) if x.shape[dim] > 1 else 1 for x in pieces]
    if not all(steps):
        return None
    return [range(i, i + x.shape[dim] * step, step) for x, step in zip(pieces, steps) for i in [x.storage_offset()]]


def _sorted(ranges: Sequence[range]) -> Tensor | None:
    """The numbers of all that stands at some ranges, as they come, in the order of the places; None if any is taken."""
    if all(b.start > a[-1] for a, b in pairwise(ranges)):
        return torch.arange(sum(map(len, ranges)), device="cpu")
    places, order = torch.cat([torch.arange(x.start, x.stop, x.step, device="cpu") for x in ranges]).sort()
    return None if bool((places.diff() == 0).any()) else order


def _of_samples(calls: Sequence[Call]) -> Call:
    """One call of parts of a batch, as they stand in memory; those with memory of their own as they come."""
    queries = [x.query for x in calls]
    starts = _ranges(queries, 0) if len({storage(x) for x in queries}) == 1 else None
    order = None if starts is None else _sorted(starts)
    query, key, value = (torch.cat([getattr(x, name) for x in calls]) for name in ("query", "key", "value"))
    masks = [_four(x.mask) for x in calls if x.mask is not None]
    masks = [x.expand(len(call.query), *x.shape[1:]) for x, call in zip(masks, calls)]
    mask, mixed = torch.cat(masks) if masks else None, _mixed(calls, 0)
    if order is not None and not order.equal(torch.arange(len(order), device="cpu")):
        at = order.to(query.device)
        query, key, value = query[at], key[at], value[at]
        mask, mixed = (None if x is None else x[at] for x in (mask, mixed))
    return replace(calls[0], query=query, key=key, value=value, mixed=mixed, mask=mask)


def _of_rows(calls: Sequence[Call], key: Tensor, value: Tensor, starts: Sequence[int], packed: bool = False) -> Call:
    """One call of query rows, those of each over its run of the keys; packed: the keys come as the rows do."""
    spans = tuple((x.query.shape[2], i, i + x.key.shape[2]) for x, i in zip(calls, starts))
    mask, query, mixed = _mask(calls, spans, key.shape[2]), torch.cat([x.query for x in calls], 2), _mixed(calls, 2)
    order = _order_of_rows(calls)
    if order is not None:
        rows = order.to(query.device)
        query, mixed = query[:, :, rows], None if mixed is None else mixed[:, :, rows]
        mask = None if mask is None else mask[..., rows, :]
        if packed:
            key, value, mask = key[:, :, rows], value[:, :, rows], None if mask is None else mask[..., rows]
    return replace(calls[0], query=query, key=key, value=value, mixed=mixed, mask=mask, causal=False)


def _mixed(calls: Sequence[Call], dim: int) -> Tensor | None:
    results = [x.mixed for x in calls if x.mixed is not None]
    return torch.cat(results, dim) if results else None


def _mask(calls: Sequence[Call], spans: Spans, m: int) -> Tensor | None:
    """What each row sees of m keys, with the masks of the calls; None if that is all."""
    if any(x.causal or x.mask is not None for x in calls):
        return _added(calls, spans, m)
    if all((start, stop) == (0, m) for _, start, stop in spans):
        return None
    device = calls[0].query.device
    seen = _SEEN.get((spans, device))
    if seen is None:
        key = torch.arange(m, device=device)
        seen = torch.cat([((key >= i) & (key < j)).expand(n, m) for n, i, j in spans])
        _SEEN[spans, device] = seen
    return seen


def _added(calls: Sequence[Call], spans: Spans, m: int) -> Tensor:
    """The masks of calls over their runs of m keys, which hide the others: added ones, or boolean if all are."""
    given = [x.mask for x in calls if x.mask is not None and x.mask.dtype != torch.bool]
    dtype = given[0].dtype if given else torch.bool
    hidden = False if dtype == torch.bool else float("-inf")
    parts: list[Tensor] = []
    for call, (n, i, j) in zip(calls, spans):
        mask = torch.ones(n, j - i, dtype=torch.bool, device=call.query.device) if call.mask is None else call.mask
        mask = mask.tril() if call.causal else mask
        if mask.dtype != dtype:
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, hidden)
        mask = _four(mask)
        parts.append(F.pad(mask.expand(*mask.shape[:2], n, j - i), (i, m - j), value=hidden))
    b, h = (max(part.shape[k] for part in parts) for k in (0, 1))
    return torch.cat([part.expand(b, h, *part.shape[2:]) for part in parts], 2)


def _shape(mask: Tensor | None) -> tuple[int, ...] | None:
    """Of a mask, but for its samples."""
    return None if mask is None else tuple(_four(mask).shape[1:])


def _four(mask: Tensor) -> Tensor:
    """A mask as [b,h,n,m], 1 where it broadcasts."""
    return mask[(None,) * (4 - mask.ndim)]
