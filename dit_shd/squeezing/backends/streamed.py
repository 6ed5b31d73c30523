"""The divergence tile by tile: any bias, mask or causality, any widths, shared keys; exact KL.

Both maps of a tile, the divergence of its rows and the gradient of its scores are computed together, and the gradient
is propagated to query, key and bias at once, so that no map is kept beyond its tile.
"""

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from dit_shd.attention.softmax import exp_, log_softmax_
from dit_shd.attention.tiles import Buffers, Loan, Maps, Tiling, add_product, index_tensor, slices
from dit_shd.squeezing.backends.job import Job, Result
from dit_shd.squeezing.plans import by_size


def run(job: Job) -> Result:
    """Value and gradients of a layer in one pass over the tiles."""
    result = Result.empty(job)
    for samples, heads, target, row_tiles in targets(job, planes=3):
        _heads(job, result, samples, heads, target, row_tiles)
    return result


def targets(job: Job, planes: int) -> Iterator[tuple[slice, list[int], "Target", list[slice]]]:
    """Tiles of the squeezed maps: samples, student heads, their target, and the slices of query rows.

    Args:
        job: The layer.
        planes: Maps of a tile that the caller holds for each student head, beside the teacher's maps.
    """
    b, _, n, m = job.teacher.shape
    buffers = Buffers.fitting(job.buffers, job.wide, job.student.query.device)
    for k, groups in by_size(job.squeeze.plan):
        tiling = Tiling.choose(b, len(groups), n, m, k + planes, buffers.device, job.chunk_mib)
        for samples in slices(b, tiling.samples):
            for tile in slices(len(groups), tiling.groups):
                kept_heads = slice(tile.start * k, tile.stop * k)
                target = Target(job, buffers, k, samples, groups[tile], kept_heads)
                yield samples, groups[tile], target, list(slices(n, tiling.rows))


def _heads(
    job: Job, result: Result, samples: slice, heads: list[int], target: "Target", row_tiles: list[slice]
) -> None:
    """Value and gradients of some samples and student heads."""
    n, buffers = job.teacher.shape[2], target.buffers
    student = Maps(job.student, samples, heads, job.temperature, buffers)
    d_key = buffers.take("d_key", *student.key.transpose(1, 2).shape)  # transposed: that product is faster
    d_queries = Loan(result.d_query, samples, student.heads, buffers, "d_query") if job.gradients else nullcontext()
    factor = student.factor / n
    with d_queries as d_query:
        for i, rows in enumerate(row_tiles):
            terms, d_scores = _MEASURES[job.measure](target.rows(rows), student, rows, job)
            result.value[samples] += job.weighted(terms, samples, rows).sum((1, 2), dtype=torch.float64) / n
            if d_query is None:
                continue
            d_scores = job.weighted(d_scores, samples, rows)
            if result.bias is not None:
                result.bias.add(d_scores, samples, student.heads, rows)
            flat = d_scores.flatten(0, 1)
            add_product(d_query[:, rows], flat, student.key, factor, first=True)
            add_product(d_key, student.query[:, rows].transpose(1, 2), flat, factor, first=i == 0)
    if not job.gradients:
        return
    d_keys = d_key.transpose(1, 2).unflatten(0, (-1, len(heads)))
    if job.student.key.shape[1] == job.student.heads:
        result.d_key[samples, student.heads] = d_keys
    else:
        shared = index_tensor(tuple(job.student.key_heads(heads)), d_key.device)
        result.d_key[samples].index_add_(1, shared, d_keys)


class Target:
    """A~ [b,G,r,m] of some student heads, each of k teacher heads, by tiles of query rows.

    Args:
        job: The layer.
        buffers: For the maps.
        k: Teacher heads of each student head.
        samples: The samples of the batch.
        student_heads: G of them.
        kept_heads: Positions of their teacher heads among the kept maps of this group size.
    """

    def __init__(self, job: Job, buffers: Buffers, k: int, samples: slice, student_heads: list[int], kept_heads: slice):
        self.k, self.buffers, self.groups = k, buffers, len(student_heads)
        heads = [head for g in student_heads for head in job.squeeze.plan[g]]
        place = index_tensor(tuple(heads), buffers.device)
        weight = job.squeeze.weight[samples].index_select(1, place).to(buffers.dtype)
        self.weight = weight.unflatten(1, (self.groups, k))[..., None]  # [s,G,k,n or 1,1]
        kept = job.squeeze.maps.get(k) if job.temperature == 1 else None
        self.kept = None if kept is None else kept[samples, kept_heads].to(buffers.dtype)
        self.maps = Maps(job.teacher, samples, heads, job.temperature, buffers) if kept is None else None

    def rows(self, rows: slice) -> Tensor:
        """A~ [s,G,r,m] of some query rows, in a buffer that the next call overwrites."""
        if self.kept is not None:
            maps = self.kept[:, :, rows].unflatten(1, (self.groups, self.k))
        else:
            assert self.maps is not None
            maps = self.maps.maps(rows).unflatten(1, (self.groups, self.k))
        weight = self.weight if self.weight.shape[3] == 1 else self.weight[:, :, :, rows]
        if self.k == 1:
            return maps[:, :, 0]
        mixed = self.buffers.take("target", *maps[:, :, 0].shape)
        if self.k == 2:  # the weights sum to 1
            return torch.lerp(maps[:, :, 1], maps[:, :, 0], weight[:, :, 0], out=mixed)
        torch.mul(maps[:, :, 0], weight[:, :, 0], out=mixed)
        for i in range(1, self.k):
            mixed.addcmul_(maps[:, :, i], weight[:, :, i])
        return mixed


def _kl(target: Tensor, student: Maps, rows: slice, job: Job) -> tuple[Tensor, Tensor]:
    """KL (or cross-entropy) per row [s,G,r] and its gradient by the scores over T: B sum(A~) - A~."""
    log_map = log_softmax_(student.scores(rows, "log B"), student.may_mask)
    terms = student.buffers.take("differences", *log_map.shape)
    if job.measure == "kl":
        torch.clamp(target, min=torch.finfo(target.dtype).tiny, out=terms).log_().sub_(log_map)
    else:
        torch.neg(log_map, out=terms)
    if student.hides:
        terms.masked_fill_(target == 0, 0.0)  # 0 log 0
    of_rows = terms.mul_(target).sum(-1)
    if not job.gradients:
        return of_rows, of_rows
    maps = exp_(log_map)
    if job.teacher.masks:
        maps.mul_(target.sum(-1, keepdim=True))  # 0 for rows that are masked altogether
    return of_rows, maps.sub_(target)


def _mse(target: Tensor, student: Maps, rows: slice, job: Job) -> tuple[Tensor, Tensor]:
    """Squared difference per row [s,G,r] and its gradient by the scores over T: B * (G - sum_m B G), G = 2 (B - A~)."""
    maps = student.maps(rows, "B")
    gap = torch.sub(maps, target, out=student.buffers.take("gap", *maps.shape))
    if job.teacher.masks:
        gap.mul_(target.sum(-1, keepdim=True) > 0)  # rows that the teacher masks altogether count as 0
    terms = torch.linalg.vecdot(gap, gap)
    if not job.gradients:
        return terms, terms
    weighted = torch.linalg.vecdot(maps, gap)[..., None]
    return terms, gap.sub_(weighted).mul_(maps).mul_(2)


_MEASURES = {"kl": _kl, "cross_entropy": _kl, "mse": _mse}
