"""Whether the dimensions of a query are [b,h,n,d]: told by what its module was given, or refused.

Some models put their heads into the batch, or the samples among the heads, or take one head of several frames: the
shapes are those of other attention, and a loss over them would be another one.
"""

from collections.abc import Sequence

from torch import Tensor

from dit_shd.attention.recording.storage import storage
from dit_shd.attention.recording.tokens import Tokens


def heads_in_batch(query: Tensor, tokens: Tokens) -> int:
    """How many heads a query [b h,n,d] has in its batch, by what its module was given; 1 if it is [b,n,d]."""
    rows, d = len(query) * query.shape[1], query.shape[2]
    heads, odd = divmod(len(query), tokens.samples or len(query))
    if heads > 1 and not odd and query.shape[1] in tokens.lengths.values():
        return heads
    by_width = next((rows // n for n, e in tokens.sizes if rows > n and rows % n == 0 and rows // n * d == e), 1)
    return by_width if by_width > 1 else _times(len(query), query.shape[1], tokens)


def _times(b: int, n: int, tokens: Tokens) -> int:
    """How many times its module's tokens b samples or windows of n tokens are."""
    samples = tokens.samples or 0
    for every, _ in tokens.sizes:
        if samples and every == samples * n and b > samples and b % samples == 0:
            return b // samples
    if not samples or any(b * n == every for every, _ in tokens.sizes):
        return 1
    parts = (b * n // every for every, _ in tokens.sizes if b * n % every == 0 and every // samples % n == 0)
    return max(parts, default=1)


def heads_among_rows(query: Tensor, mask: Tensor | None, tokens: Tokens) -> bool:
    """Whether the rows of a query [b,h,n,d] are heads that share keys: their module was given one token of each sample.

    transformers puts them there where a text is continued and its mask is not empty.
    """
    one_token = [n for n, _ in tokens.sizes[:1]] == [len(query)] == [tokens.samples] and 1 in tokens.lengths.values()
    of_heads = mask is not None and (mask.ndim < 2 or mask.shape[-2] == 1 or (mask.ndim == 4 and mask.shape[1] > 1))
    return one_token and of_heads and query.shape[2] not in {1, *tokens.lengths.values()}


def check_heads(queries: Sequence[Tensor], values: Sequence[Tensor], tokens: Tokens) -> None:
    """Refuse queries of the calls of one run that are [b,h,n,d] by their shapes alone.

    Args:
        queries: [b,h,n,d], windows among the samples.
        values: [b,h or fewer,m,d]
        tokens: What the module was given.

    Raises:
        ValueError: Saying what lies where, and how to view it.
    """
    samples = tokens.samples or 0
    parts = sum(map(len, queries)) % samples == 0 if samples else False
    pieces = parts and len(queries) > 1 and len({storage(x) for x in queries}) == 1
    for query, value in zip(queries, values):
        b, h, n, d = query.shape
        times = _times(b, n, tokens) if h == 1 else 1
        if times > 1:
            raise _wrong("heads lie in the batch", query, tokens, f"[{b // times},{times},n,d]")
        if (times := heads_in_rows(query, value, tokens)) > 1:
            raise ValueError(
                f"heads that share keys lie among the rows: wanted a query [b,h,n,d], found {list(query.shape)}; give "
                f"scaled_dot_product_attention q as [{b},{h * times},n,d], k and v as [{b},{h},n,d] and enable_gqa=True"
            )
        if h > 1 and _are_frames(query, value, tokens):
            raise _wrong("frames or windows lie where the heads belong", query, tokens, f"[{b * h},1,n,d]")
        widths = [e for every, e in tokens.sizes if every == samples * n]
        if h == 1 or samples < 2 or b == samples or not widths or h * d in widths or (b < samples and pieces):
            continue
        folded = not parts or h * d in [samples * e for e in widths]
        if b == 1 and h % samples == 0 and folded and (tokens.alone or d not in widths):
            raise _wrong("samples lie among the heads", query, tokens, f"[{samples},{h // samples},n,d]")
        if b > 1 and h == samples and (b > samples or not parts or b * d in widths):
            raise _wrong("heads lie in the batch", query, tokens, f"[{samples},{b},n,d]")
        if b > samples and b % samples == 0:
            raise _wrong("heads lie in the batch", query, tokens, f"[{samples},{b // samples * h},n,d]")


def heads_in_rows(query: Tensor, value: Tensor, tokens: Tokens) -> int:
    """How many heads that share keys a query [b,h,n,d] has for each h: with them it is as wide as the tokens are."""
    b, h, n, d = query.shape
    times, rest = divmod(n, value.shape[2])
    wide = (b * value.shape[2], h * times * d) in tokens.sizes and h * d not in [e for _, e in tokens.sizes]
    apart = h == 1 or query.stride(1) > query.stride(2)  # as a copy has them, of rows that were folded
    return times if wide and apart and not rest and b == tokens.samples else 1


def _are_frames(query: Tensor, value: Tensor, tokens: Tokens) -> bool:
    """Whether a query [b,frames,n,d] has one head: values of several lie by tokens, unless somebody has copied them."""
    b, h, n, d = query.shape
    apart, widths = value.stride(1) > value.stride(2), [e for _, e in tokens.sizes]
    if b != tokens.samples or h * d in widths:
        return False
    if tokens.frames is not None:
        return (h, n) == tokens.frames and (apart or d in widths)
    return tokens.alone and bool(tokens.lengths) and apart and n == value.shape[2] and (b * h * n, d) in tokens.sizes


def _wrong(what: str, query: Tensor, tokens: Tokens, view: str) -> ValueError:
    return ValueError(
        f"{what}: wanted a query [b,h,n,d], found {list(query.shape)}, where its module was given {tokens.samples} "
        f"samples; give scaled_dot_product_attention q, k and v as {view}"
    )


def heads_beside_windows(query: Tensor, key: Tensor, tokens: Tokens) -> int:
    """Which dimension of queries and keys in windows is the heads', of [b,windows,h,n,d] or [b,h,windows,n,d].

    The queries or the keys of all windows are the tokens that the module was given: windows that see their neighbours
    have more keys, pooled ones fewer queries. Where both would be, with other dimensions, the module's width tells.

    Raises:
        ValueError: What the module was given does not tell.
    """
    rows = [n for n, _ in tokens.sizes[:1]]
    fits = {3 - i for x in (query, key) for i in (1, 2) if len(x) * x.shape[i] * x.shape[3] in rows}
    wide = {i for i in fits if query.shape[i] * query.shape[4] in [e for _, e in tokens.sizes[:1]]}
    for dims in (fits, wide):
        if len(dims) == 1:
            return dims.pop()
    raise ValueError(
        f"which dimension of the keys {list(key.shape)} is the heads' is not known; view query, key and value as "
        "[b,h,n,d], with windows in the batch"
    )


def windows_as_samples(x: Tensor, heads: int) -> Tensor:
    """[b windows,h,n,d] of a tensor in windows, whose dimension `heads` is the heads'."""
    return x.movedim(heads, 2).flatten(0, 1)
