"""A survey of one model's attention: maps of one sample, how alike its heads are, and alpha against the timestep.

Alphabet: b samples, h heads, g student heads, n query tokens, m keys. Maps are made tile by tile and are gone when
their sums are taken; at most one layer's q, k and v are held.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dit_shd.analysis.inputs import Inputs, on_device, try_out
from dit_shd.attention.capture import Capture
from dit_shd.attention.recording.attach import capture
from dit_shd.attention.recording.joint import Block
from dit_shd.attention.recording.selection import Layers
from dit_shd.attention.tiles import CHUNK_MIB, Buffers, Maps, Tiling, slices
from dit_shd.core.errors import UserError
from dit_shd.squeezing.matching import MapSimilarity, matched
from dit_shd.squeezing.plans import Plan, contiguous
from dit_shd.squeezing.products import Projections
from dit_shd.squeezing.squeeze import Squeeze, squeeze

BINS = 128
"""Rows and columns of the picture of a whole map."""
Grid = tuple[int, int]
"""(rows, columns) of tokens."""
Tick = Callable[[], object]


def _idle() -> None: ...


@dataclass(frozen=True, eq=False)
class Look:
    """One layer's maps of one sample at one timestep."""

    tokens: list[int]
    """q query tokens."""
    rows: np.ndarray
    """[q,h,m], their rows."""
    received: np.ndarray
    """[h,m], the mean over all query tokens."""
    whole: np.ndarray
    """[y,x], the mean over heads: how much of a run of queries' attention goes to a run of keys."""
    tokens_in_all: int
    """n"""
    queries: Grid | None
    """How the query tokens lie; None: in a line."""
    keys: Grid | None


@dataclass(frozen=True, eq=False)
class LayerSurvey:
    """What is known of one layer. T timesteps, s samples."""

    layer: str
    tokens: int
    cosines: np.ndarray
    """[h,h], of the maps of all samples and timesteps."""
    plan: Plan
    matched: Plan
    alpha: np.ndarray
    """[T,s,merges], of the contiguous plan."""
    clamped: np.ndarray
    """[T], share of alphas that had left [0, 1]."""
    residual: np.ndarray
    """[T], ||A~ X - sum A_i X_i|| / ||sum A_i X_i||, mean over samples and groups."""

    @property
    def heads(self) -> int:
        return len(self.cosines)


@dataclass(frozen=True)
class Scope:
    """Which layers and maps are looked at; see capture for what they may be."""

    layers: Layers = None
    block: Block | None = None
    """None: the image's part of joint text-image attention where the model tells it, else the whole map."""
    image: slice | None = None


@torch.no_grad()
def layer_maps(
    model: nn.Module, inputs: Inputs, scope: Scope, t: int, tokens: Sequence[int] | None = None, tick: Tick = _idle
) -> tuple[Scope, dict[str, Look]]:
    """The maps of the first sample at timestep t by layer, and the scope with its block settled.

    Args:
        tokens: query tokens; by default one in the middle and two on the way to the corners. tick: is called for
            every layer that ran.

    Raises:
        UserError: nothing to look at, or a token that is not there.
    """
    try_out(model, inputs, max(t, 1))
    keywords = inputs.keywords(inputs.first, t)

    def maps(block: Block) -> dict[str, Look]:
        found: dict[str, Look] = {}

        def sink(name: str, layer: Capture) -> None:
            found[name] = _look(name, layer, keywords, tokens)
            tick()

        with capture(model, scope.layers, sink, block, scope.image):
            model(**on_device(keywords, model), return_dict=False)
        return found

    if scope.block is None and "encoder_hidden_states" in keywords:
        try:
            found = maps("image")
            return replace(scope, block="image"), found
        except UserError:  # no joint attention, or nobody knows where the image stands
            pass
    settled = scope.block or "joint"
    return replace(scope, block=settled), maps(settled)


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
        heads: student heads; by default half of each layer's, rounded up. tick: is called for every layer that ran.

    Raises:
        UserError: more student heads than a layer has, or values that are not finite.
    """
    sums: dict[str, _Sums] = {}
    projections = Projections(most=4096)

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
    return [found.layer(name, len(timesteps)) for name, found in sums.items()]


@dataclass
class _Sums:
    """What is gathered of one layer."""

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
            torch.cat(each).unflatten(0, (timesteps, -1)).numpy() for each in (self.alpha, self.clamped, self.residual)
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


def _look(name: str, layer: Capture, keywords: dict[str, Any], tokens: Sequence[int] | None) -> Look:
    _, _, n, m = layer.shape
    lying = layout(n, keywords)
    if tokens is None:
        rows, columns = lying or (1, n)
        tokens = sorted({int(f * rows) * columns + int(f * columns) for f in (0.25, 0.5, 0.75)})
    missing = [token for token in tokens if not 0 <= token < n]
    if missing:
        raise UserError(f"tokens: {name} has query tokens 0 to {n - 1}, found {missing[0]}")
    layer = layer.detach()
    received, whole = mean_maps(layer)
    chosen = layer.select(torch.tensor(tokens, device=layer.query.device)).map()[0]  # [h,q,m]
    return Look(
        tokens=list(tokens),
        rows=chosen.transpose(0, 1).double().cpu().numpy(),
        received=received.cpu().numpy(),
        whole=whole.cpu().numpy(),
        tokens_in_all=n,
        queries=lying,
        keys=lying if m == n else layout(m, keywords),
    )


@torch.no_grad()
def mean_maps(layer: Capture, bins: int = BINS, chunk_mib: float = CHUNK_MIB) -> tuple[Tensor, Tensor]:
    """Means of a layer's maps, tile by tile, in float64.

    Returns:
        The mean over samples and query tokens [h,m]; and that over samples and heads, with the attention to a run of
        keys summed and that of a run of queries averaged, so that every row sums to 1: [min(n,bins),min(m,bins)].
    """
    b, h, n, m = layer.shape
    buffers = Buffers(torch.promote_types(layer.query.dtype, torch.float32), layer.query.device)
    y, x = min(n, bins), min(m, bins)
    row_bin, key_bin = (torch.arange(k, device=buffers.device) * few // k for k, few in ((n, y), (m, x)))
    received = torch.zeros(h, m, dtype=torch.float64, device=buffers.device)
    whole = torch.zeros(y, x, dtype=torch.float64, device=buffers.device)
    tiling = Tiling.choose(b, 1, n, m, h, buffers.device, chunk_mib)
    for samples in slices(b, tiling.samples):
        maps = Maps(layer, samples, range(h), 1.0, buffers)
        for rows in slices(n, tiling.rows):
            tile = maps.maps(rows)  # [b,h,r,m]
            received += tile.sum((0, 2), dtype=torch.float64)
            summed = tile.sum((0, 1), dtype=torch.float64)  # [r,m]
            few = whole.new_zeros(len(summed), x).index_add_(1, key_bin, summed)
            whole.index_add_(0, row_bin[rows], few)
    return received / (b * n), whole / (b * h * row_bin.bincount()[:, None])


def layout(n: int, keywords: dict[str, Any]) -> Grid | None:
    """How n tokens lie: as the latents' height and width have it, or their positions, or in a square; None: a line."""
    latents, positions = keywords.get("hidden_states"), keywords.get("img_ids")
    if isinstance(latents, Tensor) and latents.ndim == 4:
        y, x = latents.shape[2:]
        rows = round((n * y / x) ** 0.5)
        if rows and n % rows == 0 and rows * x == n // rows * y:
            return rows, n // rows
    if isinstance(positions, Tensor) and len(positions) == n:
        rows, columns = (len(axis.unique()) for axis in positions.reshape(n, -1)[:, 1:3].T)
        if rows * columns == n:
            return rows, columns
    side = round(n**0.5)
    return (side, side) if side * side == n else None
