"""A survey of one model's attention: maps of one sample, similarity of heads, and alpha against the timestep.

Alphabet: b samples, h heads, g student heads, n query tokens, m key tokens. Maps are computed tile by tile and only
their sums are kept; at most one layer's q, k and v are in memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from dit_shd.analysis.inputs import Inputs, on_device, try_out
from dit_shd.analysis.token_grids import Grid, Grids, grids
from dit_shd.attention.capture import Capture
from dit_shd.attention.recording.attach import capture
from dit_shd.attention.recording.joint import Block
from dit_shd.attention.recording.selection import Layers
from dit_shd.attention.tiles import CHUNK_MIB, Buffers, Maps, Tiling, slices
from dit_shd.core.errors import UserError
from dit_shd.core.precision import wide_dtype
from dit_shd.squeezing.matching import MapSimilarity, matched
from dit_shd.squeezing.plans import Plan, contiguous
from dit_shd.squeezing.projections import Projections
from dit_shd.squeezing.squeeze import Squeeze, squeeze

BINS = 128
"""Largest number of rows and columns in the picture of a layer's map."""
Tick = Callable[[], object]


def _idle() -> None: ...


class _NoSuchToken(UserError):
    """A token out of a layer's range, which says nothing of the block."""


@dataclass(frozen=True, eq=False)
class LayerMaps:
    """One layer's maps of one sample at one timestep."""

    tokens: list[int]
    """q query tokens."""
    rows: np.ndarray
    """[q,h,m], their rows."""
    received: np.ndarray
    """[h,m], the mean over all query tokens."""
    binned: np.ndarray
    """[y,x], the mean over heads, with intervals of queries and of keys averaged."""
    token_count: int
    """n"""
    queries: Grid | None
    """The grid of the query tokens; None if they are in a line, as text is."""
    keys: Grid | None


@dataclass(frozen=True, eq=False)
class LayerSurvey:
    """The results of one layer. T timesteps, s samples."""

    layer: str
    tokens: int
    cosines: np.ndarray
    """[h,h], of the maps of all samples and timesteps."""
    plan: Plan
    matched: Plan
    alpha: np.ndarray
    """[T,s,merges], of the contiguous plan."""
    clamped: np.ndarray
    """[T], share of alphas outside of [0, 1] before clamping."""
    residual: np.ndarray
    """[T], ||A~ X - sum A_i X_i|| / ||sum A_i X_i||, mean over samples and groups."""

    @property
    def heads(self) -> int:
        """Number of heads."""
        return len(self.cosines)


@dataclass(frozen=True)
class Scope:
    """The layers and maps to analyse; see capture for their values."""

    layers: Layers = None
    block: Block | None = None
    """None: the image block of joint text-image attention if the model defines it, else the entire map."""
    image: slice | None = None


@torch.no_grad()
def layer_maps(
    model: nn.Module, inputs: Inputs, scope: Scope, t: int, tokens: Sequence[int] | None = None, tick: Tick = _idle
) -> tuple[Scope, dict[str, LayerMaps]]:
    """The maps of the first sample at timestep t.

    Args:
        model: The model.
        inputs: The arguments of its forward.
        scope: The layers and maps.
        t: The timestep.
        tokens: Query tokens; by default three on the diagonal.
        tick: Called for every recorded layer.

    Returns:
        The scope with its block, and the maps by layer.

    Raises:
        UserError: No attention to record, or a token out of range.
    """
    try_out(model, inputs, max(t, 1))
    keywords = inputs.keywords(inputs.first, t)

    def record(block: Block) -> dict[str, LayerMaps]:
        maps: dict[str, LayerMaps] = {}

        def sink(name: str, layer: Capture) -> None:
            maps[name] = _maps_of(name, layer, grids(name, layer, block, keywords), tokens)
            tick()

        with capture(model, scope.layers, sink, block, scope.image):
            model(**on_device(keywords, model), return_dict=False)
        return maps

    if scope.block is None and "encoder_hidden_states" in keywords:
        try:
            maps = record("image")
            return replace(scope, block="image"), maps
        except _NoSuchToken:
            raise
        except UserError:  # no joint attention, or the range of the image's tokens is unknown
            pass
    block = scope.block or "joint"
    return replace(scope, block=block), record(block)


@torch.no_grad()
def survey(
    model: nn.Module,
    inputs: Inputs,
    scope: Scope,
    timesteps: Sequence[int],
    heads: int | None = None,
    tick: Tick = _idle,
) -> list[LayerSurvey]:
    """Head similarity, plans and alpha of every layer, over all samples and timesteps.

    Args:
        model: The model.
        inputs: The arguments of its forward.
        scope: The layers and maps, with a block.
        timesteps: The timesteps.
        heads: Student heads; by default half of each layer's, rounded up.
        tick: Called for every recorded layer.

    Raises:
        UserError: More student heads than a layer has, or values that are not finite.
    """
    sums: dict[str, _Sums] = {}
    projections = Projections(size=4096)

    def sink(name: str, layer: Capture) -> None:
        groups = -(-layer.heads // 2) if heads is None else heads
        try:
            squeezed = squeeze(layer, groups, projections=projections)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from error
        sums.setdefault(name, _Sums(layer.shape[2], groups)).add(layer, squeezed)
        tick()

    with capture(model, scope.layers, sink, scope.block or "joint", scope.image):
        for t in timesteps:
            for samples in inputs.batches:
                model(**on_device(inputs.keywords(samples, t), model), return_dict=False)
    return [layer_sums.layer(name, len(timesteps)) for name, layer_sums in sums.items()]


@dataclass
class _Sums:
    """The accumulated results of one layer."""

    tokens: int
    groups: int
    similarity: MapSimilarity = field(default_factory=MapSimilarity)
    alpha: list[Tensor] = field(default_factory=list)
    clamped: list[Tensor] = field(default_factory=list)
    residual: list[Tensor] = field(default_factory=list)

    def add(self, layer: Capture, squeezed: Squeeze) -> None:
        assert squeezed.alpha is not None
        assert squeezed.clamped is not None
        assert squeezed.residual is not None
        self.similarity.add(layer)
        self.alpha.append(squeezed.alpha.double().cpu())
        self.clamped.append(squeezed.clamped.double().cpu())
        self.residual.append(squeezed.residual.double().cpu())

    def layer(self, name: str, timesteps: int) -> LayerSurvey:
        cosines = self.similarity.cosines()
        alpha, clamped, residual = (
            torch.cat(batches).unflatten(0, (timesteps, -1)).numpy()
            for batches in (self.alpha, self.clamped, self.residual)
        )
        return LayerSurvey(
            layer=name,
            tokens=self.tokens,
            cosines=cosines,
            plan=contiguous(len(cosines), self.groups),
            matched=matched(cosines, self.groups),
            alpha=alpha,
            clamped=clamped.mean((1, 2)) if clamped.size else np.zeros(timesteps),
            residual=residual.mean((1, 2)),
        )


def _maps_of(name: str, layer: Capture, lie: Grids, tokens: Sequence[int] | None) -> LayerMaps:
    n = layer.shape[2]
    if tokens is None:
        rows, columns = lie[0] or (1, n)
        tokens = sorted({int(f * rows) * columns + int(f * columns) for f in (0.25, 0.5, 0.75)})
    missing = [token for token in tokens if not 0 <= token < n]
    if missing:
        raise _NoSuchToken(f"tokens: {name} has query tokens 0 to {n - 1}, found {missing[0]}")
    layer = layer.detach()
    received, binned = mean_maps(layer)
    token_rows = layer.select(torch.tensor(tokens, device=layer.query.device)).map()[0]  # [h,q,m]
    return LayerMaps(
        tokens=list(tokens),
        rows=token_rows.transpose(0, 1).double().cpu().numpy(),
        received=received.cpu().numpy(),
        binned=binned.cpu().numpy(),
        token_count=n,
        queries=lie[0],
        keys=lie[1],
    )


@torch.no_grad()
def mean_maps(layer: Capture, bins: int = BINS, chunk_mib: float = CHUNK_MIB) -> tuple[Tensor, Tensor]:
    """Means of a layer's maps, tile by tile, in float64.

    Args:
        layer: The capture.
        bins: Largest number of intervals of queries and of keys.
        chunk_mib: Memory of a tile.

    Returns:
        The mean over samples and query tokens [h,m]; and the mean over samples, heads, intervals of queries and
        intervals of keys [min(n,bins),min(m,bins)]. Intervals differ in length where bins does not divide n or m, so
        that sums over them would show stripes.
    """
    b, h, n, m = layer.shape
    buffers = Buffers(wide_dtype(layer.query), layer.query.device)
    y, x = min(n, bins), min(m, bins)
    row_bin, key_bin = (torch.arange(k, device=buffers.device) * count // k for k, count in ((n, y), (m, x)))
    received = torch.zeros(h, m, dtype=torch.float64, device=buffers.device)
    binned = torch.zeros(y, x, dtype=torch.float64, device=buffers.device)
    tiling = Tiling.choose(b, 1, n, m, h, buffers.device, chunk_mib)
    for samples in slices(b, tiling.samples):
        maps = Maps(layer, samples, range(h), 1.0, buffers)
        for rows in slices(n, tiling.rows):
            tile = maps.maps(rows)  # [b,h,r,m]
            received += tile.sum((0, 2), dtype=torch.float64)
            summed = tile.sum((0, 1), dtype=torch.float64)  # [r,m]
            key_sums = binned.new_zeros(len(summed), x).index_add_(1, key_bin, summed)
            binned.index_add_(0, row_bin[rows], key_sums)
    areas = row_bin.bincount()[:, None] * key_bin.bincount()
    return received / (b * n), binned / (b * h * areas)
