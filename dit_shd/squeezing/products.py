"""Inner products that a squeeze needs of the teacher: of its heads' outputs with each other's maps, streamed.

Inside a group of k heads X_a = V_a W_a^O, and D_i = A_i - A_k are the maps' differences to the group's last. Since the
weights of a group sum to 1, A~ - A_a is a combination of the D_i, so the vectors D_i X_a are all that is needed, and
only their inner products. W_a^O enters through its Gram matrices alone, and so may be replaced by any L_a[d,k d] with
L_a L_c^T = W_a W_c^T (a QR factor): the vectors D_i V_a L_a are short, and nothing n x e or n x n outlives its tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dit_shd.attention.capture import Capture
from dit_shd.attention.streamed import attend
from dit_shd.attention.tiles import CHUNK_MIB, Buffers, Maps, Tiling, flat, index_tensor, run_of, slices
from dit_shd.core.precision import wide_dtype

Groups = list[list[int]]
"""Groups of k heads each."""


class Quadratic(NamedTuple):
    """The squared error as a function of the first k-1 weights: w'Gw - 2 w't + ||Z||^2."""

    gram: Tensor
    """<D_i X, D_j X> with X = sum_a X_a: [b,G,k-1,k-1] or [b,G,n,k-1,k-1]."""
    target: Tensor
    """<D_i X, Z> with Z = Y - A_k X = sum_a D_a X_a: [b,G,k-1] or [b,G,n,k-1]."""
    z_norm: Tensor
    """||Z||^2: [b,G] or [b,G,n]."""


@dataclass(frozen=True, eq=False)
class Products:
    """Inner products of G groups of k heads, summed over tiles in float64."""

    norm: Tensor
    """||Y||^2, Y = sum_a A_a X_a: [b,G], or [b,G,n] for each query row."""
    table: Tensor | None = None
    """<D_i X_a, D_j X_c> [b,G,k-1,k,k-1,k], for weights that all query rows share."""
    of_rows: Quadratic | None = None
    """The squared error of each query row."""

    @property
    def quadratic(self) -> Quadratic:
        """The squared error of each row, or of all rows by the table."""
        if self.of_rows is not None:
            return self.of_rows
        assert self.table is not None
        z = self.table.diagonal(dim1=4, dim2=5).sum(-1)  # <D_i X_a, Z> [b,G,i,a]
        return Quadratic(self.table.sum((3, 5)), z.sum(3), z.diagonal(dim1=2, dim2=3).sum(-1))


class Collector:
    """Sums inner products over tiles of query rows.

    Args:
        b: Samples.
        groups: G.
        k: Heads of a group.
        n: Query rows.
        per_row: Whether to keep the products of every row.
        device: The device of the products.
        row_weight: [b,n], a factor of every row's inner products; None: 1.
    """

    def __init__(
        self,
        b: int,
        groups: int,
        k: int,
        n: int,
        per_row: bool,
        device: torch.device,
        row_weight: Tensor | None = None,
    ):
        rows = (n,) if per_row else ()
        self.per_row = per_row
        self.root_weight = None if row_weight is None else row_weight.sqrt()

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(b, groups, *shape, dtype=torch.float64, device=device)

        self.norm, self.z_norm = zeros(*rows), zeros(*rows)
        self.gram, self.target = zeros(*rows, k - 1, k - 1), zeros(*rows, k - 1)
        self.table = None if per_row else zeros(k - 1, k, k - 1, k)

    def outputs(self, mixed: Tensor, factor: Tensor, samples: slice, groups: slice, rows: slice) -> None:
        """Add A_a V_a [s,G,k,r,d] of some query rows."""
        if self.root_weight is not None:
            mixed = weighted(mixed, self.root_weight[samples, None, None, rows, None])
        s, count, k, r, d = mixed.shape
        side_by_side = mixed.transpose(2, 3).reshape(s * count, r, k * d)
        for first, columns in _columns(factor.flatten(1, 2), d):
            y = torch.bmm(side_by_side[..., first:], columns if s == 1 else columns.repeat(s, 1, 1))
            self._add(self.norm, torch.linalg.vecdot(y, y).view(s, count, r), samples, groups, rows)

    def differences(self, mixed: Tensor, factor: Tensor, samples: slice, groups: slice, rows: slice) -> None:
        """Add D_i V_a [s,G,k-1,r,k,d] of some query rows."""
        if self.root_weight is not None:
            mixed = weighted(mixed, self.root_weight[samples, None, None, rows, None, None])
        s, count, less, r, k, d = mixed.shape
        stacked = factor.flatten(1, 2)
        if self.table is not None:
            by_value = mixed.permute(0, 1, 4, 2, 3, 5).reshape(s, count, k, less * r, d)
            for first, columns in _columns(stacked, d):
                a = first // d
                z = by_value[:, :, a:] @ columns.unflatten(1, (-1, d))  # some columns of D_i X_a [s,G,a,i r,d]
                vectors = z.view(s * count, (k - a) * less, -1)
                table = (vectors @ vectors.transpose(1, 2)).view(s, count, k - a, less, k - a, less)
                self.table[samples, groups, :, a:, :, a:] += table.permute(0, 1, 3, 2, 5, 4)
            return
        d_x = mixed.flatten(4) @ stacked[:, None]  # D_i X [s,G,i,r,f]
        of_own = mixed.diagonal(dim1=2, dim2=4).transpose(3, 4).flatten(3)  # D_a V_a [s,G,r,(k-1) d]
        z_sum = of_own @ stacked[:, : less * d]  # Z [s,G,r,f]
        self._add(self.gram, torch.einsum("sgirf,sgjrf->sgrij", d_x, d_x), samples, groups, rows)
        self._add(self.target, torch.einsum("sgirf,sgrf->sgri", d_x, z_sum), samples, groups, rows)
        self._add(self.z_norm, z_sum.square().sum(-1), samples, groups, rows)

    def all_pairs(self, values: Tensor, factor: Tensor, groups: slice, rows: int) -> None:
        """Add A_i V_a [b,G,i,a,n,d] of some groups, by tiles of query rows."""
        samples = slice(0, len(values))
        for tile_rows in slices(values.shape[4], rows):
            tile = values[:, :, :, :, tile_rows]
            outputs = tile.diagonal(dim1=2, dim2=3).movedim(-1, 2)  # A_a V_a [b,G,k,r,d]
            self.outputs(outputs, factor[groups], samples, groups, tile_rows)
            differences = (tile[:, :, :-1] - tile[:, :, -1:]).transpose(3, 4)  # [b,G,k-1,r,k,d]
            self.differences(differences, factor[groups], samples, groups, tile_rows)

    def _add(self, total: Tensor, values: Tensor, samples: slice, groups: slice, rows: slice) -> None:
        if self.per_row:
            total[samples, groups, rows] += values
        else:
            total[samples, groups] += values.sum(2, dtype=torch.float64)

    def products(self) -> Products:
        """The sums over all tiles that were added."""
        of_rows = Quadratic(self.gram, self.target, self.z_norm) if self.per_row else None
        return Products(self.norm, self.table, of_rows)


def streamed(
    capture: Capture,
    groups: Groups,
    factor: Tensor,
    per_row: bool = False,
    chunk_mib: float = CHUNK_MIB,
    keep: Tensor | None = None,
    row_weight: Tensor | None = None,
    buffers: Buffers | None = None,
) -> Products:
    """Inner products of groups of k >= 2 heads, tile by tile.

    Args:
        capture: The capture of the teacher, detached.
        groups: G of them.
        factor: Projections.of(capture.out, groups).
        per_row: Whether to keep the products of every query row.
        chunk_mib: Memory budget for the maps of a tile, in MiB.
        keep: Tensor [b, G k, n, m] to write the maps into; None to drop them.
        row_weight: As in Collector.
        buffers: Scratch memory to use again; None: fresh.
    """
    b, _, n, m = capture.shape
    k, d = len(groups[0]), capture.value.shape[3]
    wide = wide_dtype(capture.query)
    buffers, device = Buffers.fitting(buffers, wide, capture.query.device), capture.query.device
    collector = Collector(b, len(groups), k, n, per_row, device, row_weight)
    factor = factor.to(wide)
    tiling = Tiling.choose(b, len(groups), n, m, 2 * k if keep is not None else k, device, chunk_mib)
    for samples, tile_groups, heads in _tiles(b, groups, tiling):
        count, tile_factor = tile_groups.stop - tile_groups.start, factor[tile_groups]
        maps = Maps(capture, samples, heads, 1.0, buffers)
        values = flat(capture.value, samples, run_of(capture.key_heads(heads), device)).to(wide)
        s = len(values) // (count * k)
        side_by_side = values.view(-1, k, m, d).transpose(1, 2).reshape(-1, m, k * d)
        if capture.mixed is not None:
            outputs = flat(capture.mixed, samples, run_of(heads, device)).to(wide).view(s, count, k, n, d)
            collector.outputs(outputs, tile_factor, samples, tile_groups, slice(0, n))
        for rows in slices(n, tiling.rows):
            kept = None if keep is None else keep[samples, tile_groups.start * k : tile_groups.stop * k, rows]
            place = None if kept is None or s > 1 else kept[0]  # of one sample, maps are computed where they are kept
            tile = maps.maps(rows, out=place).view(-1, k, rows.stop - rows.start, m)  # [s G, k, r, m]
            if capture.mixed is None:
                outputs = (tile.flatten(0, 1) @ values).view(s, count, k, -1, d)
                collector.outputs(outputs, tile_factor, samples, tile_groups, rows)
            if kept is not None and place is None:
                kept.copy_(tile.view(s, count * k, -1, m))
            stacked = buffers.take("differences", s * count, k - 1, *tile.shape[2:])
            torch.sub(tile[:, :-1], tile[:, -1:], out=stacked)
            mixed = (stacked.flatten(1, 2) @ side_by_side).view(s, count, k - 1, -1, k, d)
            collector.differences(mixed, tile_factor, samples, tile_groups, rows)
    return collector.products()


def fused(
    capture: Capture,
    groups: Groups,
    factor: Tensor,
    per_row: bool = False,
    chunk_mib: float = CHUNK_MIB,
    rows: int = 1024,
    row_weight: Tensor | None = None,
) -> Products:
    """The same from PyTorch's fused attention, one call for each A_i V_a of a group; memory is linear in n."""
    b, _, n, _ = capture.shape
    k, d = len(groups[0]), capture.value.shape[3]
    wide = wide_dtype(capture.query)
    device = capture.query.device
    collector = Collector(b, len(groups), k, n, per_row, device, row_weight)
    factor, every = factor.to(wide), index_tensor(tuple(range(k)), device)
    for g, members in enumerate(groups):
        heads, shared = run_of(members, device), run_of(capture.key_heads(members), device)
        query = capture.query[:, heads].to(wide)
        key, value = capture.key[:, shared].to(wide), capture.value[:, shared].to(wide)
        bias = None if capture.bias is None else capture.bias.heads(heads)
        met = torch.empty(b, k, k, n, d, dtype=wide, device=device)  # A_i V_a
        for turn in range(k):
            result = attend(query, key, value.roll(-turn, 1), capture.scale, bias, capture.causal, chunk_mib)
            met[:, every, (every + turn) % k] = result
        collector.all_pairs(met[:, None], factor, slice(g, g + 1), rows)
    return collector.products()


def _columns(factor: Tensor, d: int) -> Iterator[tuple[int, Tensor]]:
    """Where each run of d columns of L [G,k d,f] begins, and its rows from there on [G,c,d]: above are zeros."""
    for first in range(0, factor.shape[2], d):
        yield first, factor[:, first:, first : first + d]


def weighted(mixed: Tensor, root: Tensor) -> Tensor:
    """Rows times the roots of their weights; weight 0 makes 0, also of NaN."""
    return torch.where(root > 0, mixed * root, torch.zeros_like(mixed))


def _tiles(b: int, groups: Groups, tiling: Tiling) -> Iterator[tuple[slice, slice, list[int]]]:
    """Slices of samples and of groups, and the heads of these groups."""
    for samples in slices(b, tiling.samples):
        for tile in slices(len(groups), tiling.groups):
            yield samples, tile, [head for members in groups[tile] for head in members]
