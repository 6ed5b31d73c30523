"""Head matching: which teacher heads look alike on calibration data, and the partition that keeps them together.

arXiv 2502.07436 (table 5) merges similar heads instead of neighbours. Similarity is the cosine of two heads' maps,
all query rows of all samples taken as one vector. The partition has the contiguous plan's group sizes and the largest
sum of similarities inside groups: exactly, as a set partition over all candidate groups (an integer programme, solved
by scipy's HiGHS), while there are few enough of them; else by reassigning all heads optimally, group by group
membership fixed in turn (scipy's assignment solver), until nothing improves.
"""

from itertools import combinations
from math import comb

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, linear_sum_assignment, milp
from torch import Tensor

from dit_shd.attention.capture import Capture
from dit_shd.attention.tiles import CHUNK_MIB, Buffers, Maps, Tiling, slices
from dit_shd.squeezing.plans import Plan, contiguous

CANDIDATES = 5_000
"""Up to this many candidate groups the partition is exact (28 heads into 12: 3,654, 0.2 s; 14 into 2: 3,432, 6 s)."""


class MapSimilarity:
    """Sums <A_i, A_j> over calibration batches."""

    def __init__(self, chunk_mib: float = CHUNK_MIB):
        self.gram: Tensor | None = None
        self.chunk_mib = chunk_mib

    @torch.no_grad()
    def add(self, capture: Capture) -> None:
        """Take in one layer's maps of one batch, tile by tile."""
        capture = capture.detach()
        b, h, n, m = capture.shape
        buffers = Buffers(torch.promote_types(capture.query.dtype, torch.float32), capture.query.device)
        if self.gram is None:
            self.gram = torch.zeros(h, h, dtype=torch.float64, device=buffers.device)
        tiling = Tiling.choose(b, 1, n, m, h, buffers.device, self.chunk_mib)
        for samples in slices(b, tiling.samples):
            maps = Maps(capture, samples, range(h), 1.0, buffers)
            for rows in slices(n, tiling.rows):
                flat = maps.maps(rows).flatten(2)
                self.gram += (flat @ flat.transpose(1, 2)).sum(0, dtype=torch.float64)

    def cosines(self) -> np.ndarray:
        """[h,h], 1 on the diagonal."""
        assert self.gram is not None
        norms = self.gram.diagonal().sqrt().clamp(min=torch.finfo(torch.float64).tiny)
        return (self.gram / norms[:, None] / norms[None, :]).cpu().numpy()


def matched(similarity: np.ndarray, groups: int) -> Plan:
    """The partition of h heads into groups (sizes as contiguous) of the most similar, ordered by their first head.

    Args:
        similarity: [h,h], symmetric.
    """
    h = len(similarity)
    start = contiguous(h, groups)
    sizes = sorted({len(part) for part in start})
    if sum(comb(h, k) for k in sizes) <= CANDIDATES:
        found = _exact(similarity, start)
    else:
        found = _reassigned(similarity, start)
    return tuple(sorted(tuple(sorted(part)) for part in found))


def together(similarity: np.ndarray, part: tuple[int, ...]) -> float:
    """The sum of similarities of the pairs inside a group."""
    return float(similarity[np.ix_(part, part)].sum() - similarity[part, part].sum()) / 2


def _exact(similarity: np.ndarray, start: Plan) -> list[tuple[int, ...]]:
    h = len(similarity)
    sizes = sorted({len(part) for part in start})
    candidates = [part for k in sizes for part in combinations(range(h), k)]
    covers = np.zeros((h + len(sizes), len(candidates)))
    for column, part in enumerate(candidates):
        covers[list(part), column] = 1  # every head once
        covers[h + sizes.index(len(part)), column] = 1  # every size as often as the plan has it
    counts = [1] * h + [sum(len(part) == k for part in start) for k in sizes]
    values = np.array([together(similarity, part) for part in candidates])
    solved = milp(-values, integrality=np.ones(len(values)), bounds=Bounds(0, 1),
                  constraints=LinearConstraint(covers, counts, counts))  # type: ignore[arg-type]  # fmt: skip
    assert solved.x is not None, solved.message
    return [candidates[i] for i in np.flatnonzero(solved.x > 0.5)]


def _reassigned(similarity: np.ndarray, start: Plan) -> list[tuple[int, ...]]:
    best, h = [list(part) for part in start], len(similarity)
    value = sum(together(similarity, tuple(part)) for part in best)
    for _ in range(100):
        slots = [g for g, part in enumerate(best) for _ in part]
        to_group = np.stack([similarity[:, part].sum(1) - similarity[:, part].max(1) for part in best], axis=1)
        heads, places = linear_sum_assignment(to_group[:, slots], maximize=True)
        moved: list[list[int]] = [[] for _ in best]
        for head, place in zip(heads, places):
            moved[slots[place]].append(int(head))
        reached = sum(together(similarity, tuple(part)) for part in moved)
        if reached <= value + 1e-12 * h:
            break
        best, value = moved, reached
    return [tuple(part) for part in best]
