"""MDT's learnable relative position bias, at any number of tokens: neither it nor its index is ever n x n.

On a w x w grid the bias of query (y_q, x_q) and key (y_k, x_k) is T[y_q - y_k + w-1, x_q - x_k + w-1] (BEiT). Flip T in
both directions and cut, for every x_q, the w columns that its keys need: lines[x_q, a, x_k] with a = y_k - y_q + w-1,
h w (2w-1) w numbers in all. Then the bias of query (y_q, x_q) to all n keys is one contiguous run of line x_q that
begins at a = w-1-y_q. So adding the bias, and collecting its gradient, is adding runs of memory.

Where only some tokens are present (the masked pass), entries are looked up one by one.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dit_shd.attention.bias import Adder, Bias, BiasGradient, Heads

WHOLE_MIB = 4
"""What the bias of all heads may take where tiles have all query rows, so that it is made whole: 256 tokens do."""


class RelativeBias(Bias):
    """A learnable bias that depends on the 2-D offset of two tokens only.

    The table [(2w-1)^2+3, h] is indexed by (y_q - y_k + w-1)(2w-1) + (x_q - x_k + w-1). With one code
    y(2w-1) + x for each token that index is code_q - code_k + offset.

    Args:
        table: [(2w-1)^2+3, h]; the last three entries are never used (BEiT keeps them for its class token).
        window: Tokens along one side, w.
        code: [b,m], the codes of the tokens that are there; None: all n = w w tokens, row by row.
        query_code: [b,r], those of the query tokens, where they are not the same.
    """

    masks = False

    def __init__(self, table: Tensor, window: int, code: Tensor | None = None, query_code: Tensor | None = None):
        self.leaves = (table,)
        self.window = window
        self.code = code
        self.query_code = code if query_code is None else query_code
        self._lines: Tensor | None = None  # both are made once for all tiles that go through one bias
        self._whole: Tensor | None = None

    @staticmethod
    def codes(window: int, device: torch.device | None = None) -> Tensor:
        """The code of every token of a w x w grid, row by row: [w*w], int32; made on the device, not copied to it."""
        line = torch.arange(window, dtype=torch.int32, device=device)
        return (line[:, None] * (2 * window - 1) + line[None, :]).flatten()

    def shape(self) -> tuple[int, int, int, int]:
        h, n = self.leaves[0].shape[1], self.window**2
        if self.code is None or self.query_code is None:
            return 1, h, n, n
        b, m = self.code.shape
        return b, h, self.query_code.shape[1], m

    def rebuilt(self, leaves: Sequence[Tensor]) -> "RelativeBias":
        return RelativeBias(leaves[0], self.window, self.code, self.query_code)

    def samples(self, part: slice) -> "RelativeBias":
        if self.code is None or self.query_code is None or self.code.shape[0] == 1:
            return self
        return RelativeBias(self.leaves[0], self.window, self.code[part], self.query_code[part])

    def heads(self, heads: Heads) -> "RelativeBias":
        return self.rebuilt([self.leaves[0][:, heads]])

    def select(self, rows: Tensor) -> "RelativeBias":
        code = self.codes(self.window, rows.device)[None] if self.code is None else self.code
        query_code = code if self.query_code is None else self.query_code
        return RelativeBias(self.leaves[0], self.window, code, query_code[:, rows])

    def tile(self, heads: Heads, rows: slice) -> Tensor | None:
        n, table = self.window**2, self.leaves[0].detach()
        if self.code is not None or rows != slice(0, n) or 4 * table.shape[1] * n**2 > WHOLE_MIB * 2**20:
            return None
        if self._whole is None:
            self._whole = whole_of(lines_of(table.t(), self.window), self.window)
        return self._whole[heads]

    def adder(self, heads: Heads = slice(None), factor: float = 1.0) -> Adder:
        table = self.leaves[0].detach().t()
        if self.code is None:
            if self._lines is None:
                self._lines = lines_of(table, self.window)
            lines = self._lines[heads]

            def add_runs(scores: Tensor, rows: slice) -> None:
                if whole_lines(rows, self.window):
                    torch._foreach_add_(by_line(scores, self.window), windows(lines, rows, self.window), alpha=factor)
                    return
                for part, x, run in runs(rows, self.window):
                    scores[:, :, part].add_(lines[:, x, run], alpha=factor)

            return add_runs
        table = table[heads] * factor

        def add_entries(scores: Tensor, rows: slice) -> None:
            index = self._index(rows)
            entries = table.index_select(1, index.flatten())  # [k, b*r*m]
            scores.add_(entries.view(-1, *index.shape).transpose(0, 1))

        return add_entries

    def _index(self, rows: slice) -> Tensor:
        """Entries of the table [b or 1, r, m], int32."""
        assert self.code is not None and self.query_code is not None
        offset = (self.window - 1) * (2 * self.window - 1) + (self.window - 1)
        return (self.query_code[:, rows, None] + offset) - self.code[:, None, :]

    def rows(self, rows: slice) -> Tensor:
        (table,) = self.leaves
        if self.code is None:
            lines = lines_of(table.t(), self.window)
            rows = slice(*rows.indices(self.window**2)[:2])
            return torch.cat([lines[:, x, run] for _, x, run in runs(rows, self.window)], dim=1)[None]
        index = self._index(rows)
        return table.t().index_select(1, index.flatten()).view(-1, *index.shape).transpose(0, 1)

    def gradient(self, samples: int) -> BiasGradient:
        return _Runs(self, samples) if self.code is None else _Entries(self, samples)

    def weighted(self, totals: Sequence[Tensor], weights: Tensor | None = None) -> tuple[Tensor, ...]:
        (total,) = totals
        if weights is not None:
            total = total * weights.to(total.dtype)[:, None, None]
        return (total.sum(0).to(self.leaves[0].dtype),)


def runs(rows: slice, window: int) -> Iterator[tuple[slice, slice, slice]]:
    """The grid lines that a run of query rows crosses: (which of the rows, their x_q, their run of a line's keys)."""
    first = rows.start
    while first < rows.stop:
        y = first // window
        last = min(rows.stop, (y + 1) * window)
        start = (window - 1 - y) * window
        yield (
            slice(first - rows.start, last - rows.start),
            slice(first - y * window, last - y * window),
            slice(start, start + window * window),
        )
        first = last


def whole_lines(rows: slice, window: int) -> bool:
    """Whether a run of query rows begins and ends with a line of the grid."""
    return rows.start % window == 0 and rows.stop % window == 0


def by_line(tile: Tensor, window: int) -> list[Tensor]:
    """The lines [b,k,x_q,m] of a tile of whole lines [b,k,r,m]."""
    return list(tile.unflatten(2, (-1, window)).unbind(2))


def windows(lines: Tensor, rows: slice, window: int) -> list[Tensor]:
    """The runs [..., x_q, n] of lines [..., x_q, (2w-1) * w] that whole lines of the grid need, one for each."""
    starts = lines.unfold(-1, window * window, window).unbind(-2)
    return [starts[window - 1 - y] for y in range(rows.start // window, rows.stop // window)]


def lines_of(table: Tensor, window: int) -> Tensor:
    """[h, x_q, (2w-1) * w] of a table [h, (2w-1)^2+3]."""
    side = 2 * window - 1
    flipped = table[:, : side * side].reshape(-1, side, side).flip(1, 2)
    cut = flipped.unfold(2, window, 1)  # [h, a, where the cut starts, x_k]; the keys of x_q start at w-1-x_q
    return cut.flip(2).permute(0, 2, 1, 3).reshape(-1, window, side * window)


def whole_of(lines: Tensor, window: int) -> Tensor:
    """The bias [h,n,n] of lines [h, x_q, (2w-1) * w]."""
    runs_from_the_last = lines.unfold(-1, window * window, window)  # [h, x_q, w-1-y_q, n]
    return runs_from_the_last.flip(2).transpose(1, 2).flatten(1, 2)


class _Runs(BiasGradient):
    """For all tokens of the grid: a sum of runs, folded back into the table at the end."""

    def __init__(self, bias: RelativeBias, samples: int):
        (table,) = bias.leaves
        self.window, self.spare = bias.window, table.shape[0] - (2 * bias.window - 1) ** 2
        super().__init__((samples, table.shape[1], bias.window, (2 * bias.window - 1) * bias.window), table)

    def add(self, d_scores: Tensor, samples: slice, heads: Heads, rows: slice) -> None:
        if len(self.collected) == 1:
            samples, d_scores = slice(0, 1), d_scores.sum(0, keepdim=True) if len(d_scores) > 1 else d_scores
        if isinstance(heads, slice) and whole_lines(rows, self.window):
            collected = self.collected[samples, heads]
            for window, line in zip(windows(collected, rows, self.window), by_line(d_scores, self.window)):
                window.add_(line)  # one after another: the windows overlap
            return
        for part, x, run in runs(rows, self.window):
            self.collected[samples, heads, x, run] += d_scores[:, :, part]

    def total(self) -> tuple[Tensor, ...]:
        table = _folded(self.collected, self.window)
        return (torch.nn.functional.pad(table, (0, self.spare)).transpose(1, 2),)


def _folded(lines: Tensor, window: int) -> Tensor:
    """The table [b, h, (2w-1)^2] that lines [b, h, x_q, (2w-1) * w] are cut from, their sums where they overlap.

    The keys of x_q start at w-1-x_q, so row r = w-1-x_q is to be moved by r: rows of length 2w, read as rows of 2w-1.
    """
    side = 2 * window - 1
    rows = lines.unflatten(3, (side, window)).flip(2).transpose(2, 3)  # [b, h, a, r, x_k]
    padded = torch.nn.functional.pad(rows, (0, window)).flatten(3)  # [b, h, a, w * 2w]
    moved = padded[..., : window * side].unflatten(3, (window, side))
    return moved.sum(3).flip(2, 3).flatten(2)


class _Entries(BiasGradient):
    """For tokens here and there: a sum into the table, entry by entry."""

    def __init__(self, bias: RelativeBias, samples: int):
        (table,) = bias.leaves
        self.bias = bias
        super().__init__((samples, table.shape[1], table.shape[0]), table)

    def add(self, d_scores: Tensor, samples: slice, heads: Heads, rows: slice) -> None:
        index = self.bias.samples(samples)._index(rows).flatten(1).long()  # [b or 1, r*m]; int32 is slow in index_add_
        k, size = d_scores.shape[1], self.collected.shape[2]
        for i, grads in enumerate(d_scores.flatten(2).to(self.collected.dtype)):
            places = index[i if len(index) > 1 else 0]
            collected = self.collected.new_zeros(k, size).index_add_(1, places, grads)
            self.collected[samples.start + i if len(self.collected) > 1 else 0, heads] += collected

    def total(self) -> tuple[Tensor, ...]:
        return (self.collected.transpose(1, 2),)
