"""What a squeeze needs of the teacher, streamed: inner products of what its heads would put out with each other's maps.

Inside a group of k heads X_a = V_a W_a^O, and D_i = A_i - A_k are the maps' differences to the group's last. Since the
weights of a group sum to 1, A~ - A_a is a combination of the D_i, so the vectors D_i X_a are all that is needed, and
only their inner products. W_a^O enters through its Gram matrices alone, and so may be replaced by any L_a[d,k d] with
L_a L_c^T = W_a W_c^T (a QR factor): the vectors D_i V_a L_a are short, and nothing n x e or n x n outlives its tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dit_shd.attention.capture import Capture
from dit_shd.attention.streamed import attend
from dit_shd.attention.tiles import CHUNK_MIB, Buffers, Maps, Tiling, flat, index_tensor, run_of, slices
from dit_shd.squeezing.kernels.captures import values_met

Groups = list[list[int]]
"""Some groups of k heads each."""


@dataclass(frozen=True, eq=False)
class Products:
    """Inner products of G groups of k heads: a tile's in the maps' precision, their sum over tiles in float64."""

    norm: Tensor
    """||Y||^2, Y = sum_a A_a X_a: [b,G], or [b,G,n] for each query row."""
    table: Tensor | None
    """<D_i X_a, D_j X_c> [b,G,k-1,k,k-1,k], for weights that all query rows share."""
    gram: Tensor
    """<D_i X, D_j X> with X = sum_a X_a: [b,G,k-1,k-1] or [b,G,n,k-1,k-1]."""
    target: Tensor
    """<D_i X, Z> with Z = Y - A_k X = sum_a D_a X_a: [b,G,k-1] or [b,G,n,k-1]."""
    own: Tensor
    """||Z||^2: [b,G] or [b,G,n]."""


@dataclass
class Projections:
    """The factors L_a of W^O, kept while the teacher's weights stay what they are (the last 256 of them).

    A change through autograd's or in-place operations is noticed; one through `.data` is not: call clear() then.
    """

    most: int = 256
    _kept: dict[tuple[object, ...], tuple[Tensor, int, Tensor]] = field(default_factory=dict)

    def of(self, out: Tensor, groups: Groups) -> Tensor:
        """L[G,k,d,f], f = min(k d, e), in float64, with L_a L_c^T = W_a W_c^T inside each group of `out` [h,d,e]."""
        if torch.compiler.is_compiling():  # a cache is nothing for a graph
            return _short_factor(out, groups)
        key = (out.data_ptr(), tuple(out.shape), out.stride(), out.dtype, str(out.device), str(groups))
        entry = self._kept.get(key)
        version = 0 if out.is_inference() else out._version
        if entry is not None and entry[1] == version:
            return entry[2]
        factor = _short_factor(out, groups)
        while len(self._kept) >= self.most:
            self._kept.pop(next(iter(self._kept)))
        self._kept[key] = (out, version, factor)  # holding `out` keeps its memory from becoming another tensor's
        return factor

    def clear(self) -> None:
        """Forget all of them."""
        self._kept.clear()


def _short_factor(out: Tensor, groups: Groups) -> Tensor:
    place = index_tensor(tuple(head for group in groups for head in group), out.device).view(len(groups), -1)
    stacked = out.detach()[place].double().flatten(1, 2)  # [G, k d, e]
    upper = torch.linalg.qr(stacked.transpose(1, 2), mode="r").R  # [G, f, k d]
    return upper.transpose(1, 2).unflatten(1, (len(groups[0]), -1)).contiguous()


class Collector:
    """Sums inner products over tiles of query rows.

    Args:
        row_weight: [b,n]: a factor of every row's inner products; None: 1.
    """

    def __init__(
        self,
        b: int,
        groups: int,
        k: int,
        n: int,
        each_row: bool,
        device: torch.device,
        row_weight: Tensor | None = None,
    ):
        rows = (n,) if each_row else ()
        self.each_row = each_row
        self.root_weight = None if row_weight is None else row_weight.sqrt()

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(b, groups, *shape, dtype=torch.float64, device=device)

        self.norm, self.own = zeros(*rows), zeros(*rows)
        self.gram, self.target = zeros(*rows, k - 1, k - 1), zeros(*rows, k - 1)
        self.table = None if each_row else zeros(k - 1, k, k - 1, k)

    def outputs(self, mixed: Tensor, factor: Tensor, samples: slice, groups: slice, rows: slice) -> None:
        """Take in A_a V_a [s,G,k,r,d] of some query rows."""
        if self.root_weight is not None:
            mixed = _weighted(mixed, self.root_weight[samples, None, None, rows, None])
        y = (mixed @ factor).sum(2)  # [s,G,r,f]
        self._add(self.norm, y.square().sum(-1), samples, groups, rows)

    def differences(self, mixed: Tensor, factor: Tensor, samples: slice, groups: slice, rows: slice) -> None:
        """Take in D_i V_a [s,G,k-1,r,k,d] of some query rows."""
        if self.root_weight is not None:
            mixed = _weighted(mixed, self.root_weight[samples, None, None, rows, None, None])
        s, count, less, r, k, d = mixed.shape
        by_value = mixed.permute(0, 1, 4, 2, 3, 5).reshape(s, count, k, less * r, d)
        z = (by_value @ factor).view(s, count, k, less, r, -1).transpose(2, 3)  # D_i X_a [s,G,i,a,r,f]
        if self.table is not None:
            vectors = z.reshape(s * count, less * k, -1)
            table = (vectors @ vectors.transpose(1, 2)).view(s, count, less, k, less, k)
            self.table[samples, groups] += table
            return
        whole, own = z.sum(3), z.diagonal(dim1=2, dim2=3).sum(-1)  # D_i X [s,G,i,r,f], Z [s,G,r,f]
        self._add(self.gram, torch.einsum("sgirf,sgjrf->sgrij", whole, whole), samples, groups, rows)
        self._add(self.target, torch.einsum("sgirf,sgrf->sgri", whole, own), samples, groups, rows)
        self._add(self.own, own.square().sum(-1), samples, groups, rows)

    def met(self, values: Tensor, factor: Tensor, group: int, rows: int) -> None:
        """Take in A_i V_a [b,i,a,n,d] of one group, some rows at a time."""
        part, everyone = slice(group, group + 1), slice(0, len(values))
        for few in slices(values.shape[3], rows):
            tile = values[:, :, :, few]
            own = tile.diagonal(dim1=1, dim2=2).permute(0, 3, 1, 2)[:, None]  # [b,1,k,r,d]
            self.outputs(own, factor[part], everyone, part, few)
            differences = (tile[:, :-1] - tile[:, -1:]).transpose(2, 3)[:, None]  # [b,1,k-1,r,k,d]
            self.differences(differences, factor[part], everyone, part, few)

    def _add(self, total: Tensor, part: Tensor, samples: slice, groups: slice, rows: slice) -> None:
        if self.each_row:
            total[samples, groups, rows] += part
        else:
            total[samples, groups] += part.sum(2, dtype=torch.float64)

    def products(self) -> Products:
        if self.table is None:
            return Products(self.norm, None, self.gram, self.target, self.own)
        z = self.table.diagonal(dim1=4, dim2=5).sum(-1)  # <D_i X_a, Z> [b,G,i,a]
        return Products(
            norm=self.norm,
            table=self.table,
            gram=self.table.sum((3, 5)),
            target=z.sum(3),
            own=z.diagonal(dim1=2, dim2=3).sum(-1),
        )


def streamed(
    capture: Capture,
    groups: Groups,
    factor: Tensor,
    each_row: bool = False,
    chunk_mib: float = CHUNK_MIB,
    keep: Tensor | None = None,
    row_weight: Tensor | None = None,
) -> Products:
    """Inner products of some groups of k >= 2 heads, tile by tile.

    Args:
        capture: detached. factor: Projections.of(capture.out, groups).
        each_row: for weights of each query row.
        keep: where to leave the maps [b, G k, n, m] for later use, if that is wanted.
        row_weight: as Collector's.
    """
    b, _, n, m = capture.shape
    k, d = len(groups[0]), capture.value.shape[3]
    wide = torch.promote_types(capture.query.dtype, torch.float32)
    buffers = Buffers(wide, capture.query.device)
    collector = Collector(b, len(groups), k, n, each_row, buffers.device, row_weight)
    factor = factor.to(wide)
    tiling = Tiling.choose(b, len(groups), n, m, 2 * k if keep is not None else k, buffers.device, chunk_mib)
    for samples, part, heads in _tiles(b, groups, tiling):
        count, few = part.stop - part.start, factor[part]
        maps = Maps(capture, samples, heads, 1.0, buffers)
        values = flat(capture.value, samples, run_of(capture.key_heads(heads))).to(wide)
        s = len(values) // (count * k)
        side_by_side = values.view(-1, k, m, d).transpose(1, 2).reshape(-1, m, k * d)
        if capture.mixed is not None:
            own = flat(capture.mixed, samples, run_of(heads)).to(wide).view(s, count, k, n, d)
            collector.outputs(own, few, samples, part, slice(0, n))
        for rows in slices(n, tiling.rows):
            tile = maps.maps(rows).view(-1, k, rows.stop - rows.start, m)  # [s G, k, r, m]
            if capture.mixed is None:
                own = (tile.flatten(0, 1) @ values).view(s, count, k, -1, d)
                collector.outputs(own, few, samples, part, rows)
            if keep is not None:
                keep[samples, part.start * k : part.stop * k, rows] = tile.view(s, count * k, -1, m)
            tile[:, :-1].sub_(tile[:, -1:])
            stacked = tile.flatten(1, 2)[:, : (k - 1) * tile.shape[2]]  # D_1 .. D_{k-1}, one above the other
            mixed = (stacked @ side_by_side).view(s, count, k - 1, -1, k, d)
            collector.differences(mixed, few, samples, part, rows)
    return collector.products()


def fused(
    capture: Capture,
    groups: Groups,
    factor: Tensor,
    each_row: bool = False,
    chunk_mib: float = CHUNK_MIB,
    rows: int = 1024,
    row_weight: Tensor | None = None,
) -> Products:
    """The same from stock fused attention: one call for each value that a head's map meets. Memory is linear in n."""
    b, _, n, _ = capture.shape
    k, d = len(groups[0]), capture.value.shape[3]
    wide = torch.promote_types(capture.query.dtype, torch.float32)
    collector = Collector(b, len(groups), k, n, each_row, capture.query.device, row_weight)
    factor = factor.to(wide)
    for g, members in enumerate(groups):
        query = capture.query[:, members].to(wide)
        shared = capture.key_heads(members)
        key, value = capture.key[:, shared].to(wide), capture.value[:, shared].to(wide)
        bias = None if capture.bias is None else capture.bias.heads(members)
        met = torch.empty(b, k, k, n, d, dtype=wide, device=query.device)  # A_i V_a
        for turn in range(k):
            partner = [(i + turn) % k for i in range(k)]
            found = attend(query, key, value[:, partner], capture.scale, bias, capture.causal, chunk_mib)
            met[:, torch.arange(k), torch.tensor(partner)] = found
        collector.met(met, factor, g, rows)
    return collector.products()


def by_kernels(
    capture: Capture, groups: Groups, factor: Tensor, each_row: bool = False, row_weight: Tensor | None = None
) -> tuple[Products, tuple[Tensor, Tensor]]:
    """The same by Triton kernels, and the top and 1/total of the scores of every row [b,h,n]."""
    b, _, n, _ = capture.shape
    collector = Collector(b, len(groups), len(groups[0]), n, each_row, capture.query.device, row_weight)
    values, *row_sums = values_met(capture, groups)
    for g, members in enumerate(groups):
        collector.met(values[:, members], factor.float(), g, n)
    return collector.products(), (row_sums[0], row_sums[1])


def _weighted(mixed: Tensor, root: Tensor) -> Tensor:
    """Rows times the roots of their weights; a row of weight 0 is 0, also where it is NaN."""
    return torch.where(root > 0, mixed * root, torch.zeros_like(mixed))


def _tiles(b: int, groups: Groups, tiling: Tiling) -> Iterator[tuple[slice, slice, list[int]]]:
    """Samples, groups, and these groups' heads in a row."""
    for samples in slices(b, tiling.samples):
        for part in slices(len(groups), tiling.groups):
            yield samples, part, [head for members in groups[part] for head in members]
