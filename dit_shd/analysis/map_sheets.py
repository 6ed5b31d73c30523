"""Attention maps of one sample at several timesteps, for many query tokens, in bytes: small enough for a page.

Alphabet: T timesteps, q query tokens, m key tokens; maps are those of all groups (heads, merged heads, students).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from dit_shd.analysis.inputs import Inputs, on_device
from dit_shd.analysis.survey import LayerMaps, Scope
from dit_shd.analysis.token_grids import Grid
from dit_shd.attention.capture import Capture
from dit_shd.attention.recording.attach import capture
from dit_shd.squeezing.squeeze import Squeeze, squeeze

BUDGET = 1_200_000
"""Values of a page, a byte each."""
KEYS = (256, 64)
"""Largest numbers of keys of a map, tried in this order; more are averaged in areas."""
TIMESTEPS = (10, 5, 3)
QUERIES = 16
"""Query tokens that a layer has at least, if it has so many."""
LEVELS = 255


@dataclass(frozen=True)
class Extent:
    """How much of a model's attention fits the budget."""

    layers: int
    timesteps: int
    queries: int
    keys: int


def extent(layers: int, timesteps: int, maps: int, queries: int, keys: int, budget: int = BUDGET) -> Extent:
    """What fits: keys in areas first, then fewer timesteps, then fewer layers, and as many query tokens as remain.

    Args:
        layers: Number of layers.
        timesteps: Number of timesteps.
        maps: Maps of a layer.
        queries: Query tokens of a layer.
        keys: Key tokens of a layer.
        budget: Values in all.
    """
    smallest = Extent(1, 1, 1, 1)
    for depth in sorted({layers, min(layers, 12), min(layers, 6), min(layers, 3)}, reverse=True):
        for most in KEYS:
            for times in TIMESTEPS:
                shape = depth, min(times, timesteps), min(most, keys)
                count = budget // (shape[0] * shape[1] * shape[2] * maps)
                smallest = Extent(shape[0], shape[1], max(1, min(count, queries)), shape[2])
                if count >= min(queries, QUERIES):
                    return smallest
    return smallest


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` numbers below `count` at equal distances, the first and the last among them."""
    if wanted >= count:
        return list(range(count))
    return sorted({round(i * (count - 1) / max(wanted - 1, 1)) for i in range(wanted)})


def chosen_tokens(grid: Grid, count: int) -> list[int]:
    """About `count` tokens of a grid, evenly over its rows and columns."""
    rows, columns = grid
    if rows * columns <= count:
        return list(range(rows * columns))
    if rows == 1:
        return spread(columns, count)
    side = max(1, int(count**0.5))
    return [y * columns + x for y in spread(rows, side) for x in spread(columns, side)]


@dataclass(frozen=True, eq=False)
class LayerSheets:
    """The maps of one layer at every timestep."""

    layer: str
    tokens: list[int]
    """The q query tokens."""
    grid: Grid
    """Of all query tokens; one row if they are in a line."""
    keys: Grid
    """Of the keys, or of the areas in which they are averaged."""
    key_count: int
    """m of the model."""
    levels: list[np.ndarray] = field(default_factory=list)
    """uint8 [q,maps,m] at each timestep: the square root of a value's share of the highest."""
    tops: list[float] = field(default_factory=list)
    """The highest value at each timestep."""
    notes: list[list[str]] = field(default_factory=list)
    """Words below each map at each timestep, as the weights of merged heads."""

    @property
    def pooled(self) -> bool:
        """Whether a key of the maps is an area of several."""
        return self.keys[0] * self.keys[1] < self.key_count

    @classmethod
    def begin(cls, layer: str, n: int, m: int, grids: tuple[Grid | None, Grid | None], size: Extent) -> "LayerSheets":
        """Choose query tokens and areas of keys.

        Args:
            layer: Its name.
            n: Query tokens.
            m: Key tokens.
            grids: Of query and key tokens; None for a line.
            size: What fits.
        """
        grid, keys = grids[0] or (1, n), grids[1] or (1, m)
        factor = max(1.0, (m / size.keys) ** (0.5 if keys[0] > 1 else 1.0))
        small = tuple(max(1, int(side / factor)) for side in keys) if keys[0] > 1 else (1, max(1, int(m / factor)))
        return cls(layer, chosen_tokens(grid, size.queries), grid, (small[0], small[1]), m)

    def add(self, maps: Tensor, key_grid: Grid | None, notes: list[str]) -> None:
        """Take the maps of the next timestep.

        Args:
            maps: [maps,q,m].
            key_grid: Of the keys; None for a line.
            notes: Words of each map.
        """
        assert maps.shape[1] == len(self.tokens), "a page finds rows by their tokens"
        rows = self._areas(maps.double().cpu(), key_grid or (1, maps.shape[2])).transpose(0, 1)  # [q,maps,m]
        top = float(rows.max())
        shares = (rows / max(top, 1e-30)).clamp(0, 1).sqrt()
        self.levels.append((LEVELS * shares).round().to(torch.uint8).numpy())
        self.tops.append(top)
        self.notes.append(notes)

    def values(self, time: int) -> np.ndarray:
        """The maps at one timestep, as precise as they were kept [q,maps,m]."""
        return self.tops[time] * (self.levels[time].astype(np.float64) / LEVELS) ** 2

    def _areas(self, maps: Tensor, grid: Grid) -> Tensor:
        """Means over the areas of keys, which differ in size by a row and a column [maps,q,areas]."""
        if grid == self.keys:
            return maps
        y, x = (torch.arange(full) * small // full for full, small in zip(grid, self.keys))
        area = (y[:, None] * self.keys[1] + x[None, :]).flatten()
        sums = maps.new_zeros(*maps.shape[:2], self.keys[0] * self.keys[1]).index_add_(2, area, maps)
        return sums / area.bincount()


@dataclass(frozen=True, eq=False)
class Sheets:
    """Maps of several layers at several timesteps."""

    timesteps: list[int]
    groups: dict[str, list[str]]
    """Group -> the names of its maps, in the order of a layer's maps."""
    layers: list[LayerSheets]


def rows_of(layer: Capture, tokens: Sequence[int]) -> Tensor:
    """The maps of some query tokens of the first sample [h,q,m]."""
    return layer.detach().select(torch.tensor(tokens, device=layer.query.device)).map()[0]


def merged_notes(squeezed: Squeeze) -> list[str]:
    """The weights of the heads in each merged head of the first sample, as 0.63 A0 + 0.37 A1."""
    weight = squeezed.weight[0, :, 0].tolist()
    return [" + ".join(f"{weight[head]:.2f} A{head}" for head in group) for group in squeezed.plan]


@torch.no_grad()
def head_sheets(
    model: nn.Module,
    inputs: Inputs,
    scope: Scope,
    maps: Mapping[str, LayerMaps],
    timesteps: Sequence[int],
    heads: int | None = None,
    tick: Callable[[], object] = lambda: None,
) -> Sheets:
    """Record the maps of every head, and of the heads merged by the contiguous plan, of the first sample.

    Args:
        model: The model.
        inputs: The arguments of its forward.
        scope: The layers, with a block.
        maps: What layer_maps recorded; layers with another number of heads than the first are left out.
        timesteps: The timesteps, of which as many as fit are recorded.
        heads: Student heads; by default half of the layer's, rounded up.
        tick: Called for every recorded layer.
    """
    h = next(iter(maps.values())).received.shape[0]
    groups = -(-h // 2) if heads is None else heads
    alike = [name for name, layer in maps.items() if len(layer.received) == h]
    most = max(maps[name].token_count for name in alike), max(maps[name].rows.shape[2] for name in alike)
    size = extent(len(alike), len(timesteps), h + groups * (groups < h), *most)
    times = [timesteps[i] for i in spread(len(timesteps), size.timesteps)]
    sheets = {
        name: LayerSheets.begin(
            name, maps[name].token_count, maps[name].rows.shape[2], (maps[name].queries, maps[name].keys), size
        )
        for name in (alike[i] for i in spread(len(alike), size.layers))
    }
    plan: list[str] = []

    def sink(name: str, layer: Capture) -> None:
        tick()
        if name not in sheets:
            return
        rows, notes = rows_of(layer, sheets[name].tokens), [""] * h
        if groups < h:
            squeezed = squeeze(layer, groups)
            of_first = replace(squeezed, weight=squeezed.weight[:1])
            rows = torch.cat([rows, of_first.mix(rows[None])[0]])
            notes += merged_notes(squeezed)
            plan[:] = ["+".join(map(str, group)) for group in squeezed.plan]
        sheets[name].add(rows, maps[name].keys, notes)

    with capture(model, scope.layers, sink, scope.block or "joint", scope.image):
        for t in times:
            model(**on_device(inputs.keywords(inputs.first, t), model), return_dict=False)
    names = {"heads": [f"head {head}" for head in range(h)]}
    if plan:
        names["merged heads"] = plan
    return Sheets(times, names, list(sheets.values()))
