"""Head matching: the similarity of teacher heads on calibration data, and the partition into groups of similar heads.

arXiv 2502.07436 (table 5) merges similar heads instead of neighbours. Similarity is the cosine of two heads' maps,
all query rows of all samples taken as one vector. The partition has the contiguous plan's group sizes and the largest
sum of similarities inside groups. Up to CANDIDATES candidate groups it is exact, a set partition (an integer programme,
solved by scipy's HiGHS); beyond that all heads are reassigned optimally to the current groups (scipy's assignment
solver) until the sum no longer improves.
"""

from itertools import combinations
from math import comb

import numpy as np
import torch
from torch import Tensor

from dit_shd.attention.capture import Capture
from dit_shd.attention.tiles import CHUNK_MIB, Buffers, Maps, Tiling, full_precision, slices
from dit_shd.core.precision import wide_dtype
from dit_shd.squeezing.plans import Plan, contiguous
from dit_shd.squeezing.products import weighted
from dit_shd.squeezing.squeeze import check_row_weight

CANDIDATES = 5_000
"""Up to this many candidate groups the partition is exact (28 heads into 12: 3,654, 0.2 s; 14 into 2: 3,432, 6 s)."""


class MapSimilarity:
    """Sums <A_i, A_j> over calibration batches."""

    def __init__(self, chunk_mib: float = CHUNK_MIB):
        self.gram: Tensor | None = None
        self.chunk_mib = chunk_mib

    @torch.no_grad()
    def add(self, capture: Capture, row_weight: Tensor | None = None) -> None:
        """Add one layer's maps of one batch, tile by tile.

        Args:
            capture: The capture of the layer.
            row_weight: [b,n], a factor of every query row's products; None: 1. Rows of weight 0 (padding) take no part.
        """
        capture = capture.detach()
        row_weight = check_row_weight(row_weight, capture, "MapSimilarity")
        b, h, n, m = capture.shape
        buffers = Buffers(wide_dtype(capture.query), capture.query.device)
        if self.gram is None:
            self.gram = torch.zeros(h, h, dtype=torch.float64, device=buffers.device)
        tiling = Tiling.choose(b, 1, n, m, h, buffers.device, self.chunk_mib)
        with full_precision(buffers.device):
            for samples in slices(b, tiling.samples):
                maps = Maps(capture, samples, range(h), 1.0, buffers)
                for rows in slices(n, tiling.rows):
                    tile = maps.maps(rows)
                    if row_weight is not None:
                        tile = weighted(tile, row_weight[samples, None, rows, None].sqrt())
                    flat = tile.flatten(2)
                    self.gram += (flat @ flat.transpose(1, 2)).sum(0, dtype=torch.float64)

    def cosines(self) -> np.ndarray:
        """Cosines of the heads' maps [h,h], 1 on the diagonal."""
        assert self.gram is not None
        norms = self.gram.diagonal().sqrt().clamp(min=torch.finfo(torch.float64).tiny)
        return (self.gram / norms[:, None] / norms[None, :]).cpu().numpy()


def matched(similarity: np.ndarray, groups: int) -> Plan:
    """The partition of h heads into groups of similar heads, ordered by their first head.

    Args:
        similarity: [h,h], symmetric.
        groups: Their number g; they have the sizes of the contiguous plan.
    """
    h = len(similarity)
    start = contiguous(h, groups)
    sizes = sorted({len(group) for group in start})
    if sum(comb(h, k) for k in sizes) <= CANDIDATES:
        partition = _exact(similarity, start)
    else:
        partition = _reassigned(similarity, start)
    return tuple(sorted(tuple(sorted(group)) for group in partition))


def group_similarity(similarity: np.ndarray, group: tuple[int, ...]) -> float:
    """The sum of similarities of the pairs inside a group."""
    return float(similarity[np.ix_(group, group)].sum() - similarity[group, group].sum()) / 2


def _exact(similarity: np.ndarray, start: Plan) -> list[tuple[int, ...]]:
    from scipy.optimize import Bounds, LinearConstraint, milp  # 0.4 s, for the few that match heads

    h = len(similarity)
    sizes = sorted({len(group) for group in start})
    candidates = [group for k in sizes for group in combinations(range(h), k)]
    covers = np.zeros((h + len(sizes), len(candidates)))
    for column, group in enumerate(candidates):
        covers[list(group), column] = 1  # every head once
        covers[h + sizes.index(len(group)), column] = 1  # every size as often as in the plan
    counts = [1] * h + [sum(len(group) == k for group in start) for k in sizes]
    values = np.array([group_similarity(similarity, group) for group in candidates])
    solved = milp(-values, integrality=np.ones(len(values)), bounds=Bounds(0, 1),
                  constraints=LinearConstraint(covers, counts, counts))  # type: ignore[arg-type]  # fmt: skip
    assert solved.x is not None, solved.message
    return [candidates[i] for i in np.flatnonzero(solved.x > 0.5)]


def _reassigned(similarity: np.ndarray, start: Plan) -> list[tuple[int, ...]]:
    from scipy.optimize import linear_sum_assignment

    best, h = [list(group) for group in start], len(similarity)
    value = sum(group_similarity(similarity, tuple(group)) for group in best)
    for _ in range(100):
        slots = [g for g, group in enumerate(best) for _ in group]
        to_group = np.stack([similarity[:, group].sum(1) - similarity[:, group].max(1) for group in best], axis=1)
        heads, assigned = linear_sum_assignment(to_group[:, slots], maximize=True)
        moved: list[list[int]] = [[] for _ in best]
        for head, slot in zip(heads, assigned):
            moved[slots[slot]].append(int(head))
        improved = sum(group_similarity(similarity, tuple(group)) for group in moved)
        if improved <= value + 1e-12 * h:
            break
        best, value = moved, improved
    return [tuple(group) for group in best]
