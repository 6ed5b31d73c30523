"""The divergence tile by tile: any bias, mask or causality, any widths, shared keys; exact KL.

Both maps of a tile, the divergence of its rows and the gradient of its scores are computed together, and the gradient
is propagated to query, key and bias at once, so that no map is kept beyond its tile.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from dit_shd.attention.softmax import softmax_
from dit_shd.attention.tiles import Buffers, Maps, Tiling, add_product, index_tensor, slices
from dit_shd.squeezing.backends.job import Job, Result
from dit_shd.squeezing.plans import by_size


def run(job: Job) -> Result:
    """Value and gradients of a layer in one pass over the tiles."""
    result = Result.empty(job, torch.promote_types(job.student.query.dtype, torch.float32))
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
    buffers = Buffers(torch.promote_types(job.student.query.dtype, torch.float32), job.student.query.device)
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
    d_query = buffers.take("d_query", *student.query.shape)
    d_key = buffers.take("d_key", *student.key.transpose(1, 2).shape)  # transposed: that product is faster
    for i, rows in enumerate(row_tiles):
        terms, d_scores = _MEASURES[job.measure](target.rows(rows), student, rows, job)
        result.value[samples] += job.weighted(terms, samples, rows).sum((1, 2), dtype=torch.float64) / n
        if not job.gradients:
            continue
        d_scores = job.weighted(d_scores, samples, rows)
        if result.bias is not None:
            result.bias.add(d_scores, samples, student.heads, rows)
        flat = d_scores.flatten(0, 1)
        torch.bmm(flat, student.key, out=d_query[:, rows])
        add_product(d_key, student.query[:, rows].transpose(1, 2), flat, first=i == 0)
    if job.gradients:
        factor = student.factor / n
        result.d_query[samples, student.heads] = d_query.mul_(factor).unflatten(0, (-1, len(heads)))
        shared = d_key.mul_(factor).transpose(1, 2).unflatten(0, (-1, len(heads)))
        key_heads = index_tensor(tuple(job.student.key_heads(heads)), d_key.device)
        result.d_key[samples] = result.d_key[samples].index_add_(1, key_heads, shared)


class Target:
    """A~ [b,G,r,m] of some student heads, each of k teacher heads, by tiles of query rows.

    Args:
        job: The layer.
        buffers: For the maps.
        k: Teacher heads of each student head.
        samples: Of the batch.
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
        self.kept = None if kept is None else kept[samples, kept_heads]
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
        torch.mul(maps[:, :, 0], weight[:, :, 0], out=mixed)
        for i in range(1, self.k):
            mixed.addcmul_(maps[:, :, i], weight[:, :, i])
        return mixed


def _kl(target: Tensor, student: Maps, rows: slice, job: Job) -> tuple[Tensor, Tensor]:
    """KL (or cross-entropy) per row [s,G,r] and its gradient by the scores over T: B sum(A~) - A~.

    log B is (S - max S) + log(max B), without a second pass of exponentials; the two are added separately, since
    log(max B) would be lost beside a max S of -1e9 (a row whose keys are all masked).
    """
    buffers = student.buffers
    log_map = student.scores(rows, "log B")
    maps = softmax_(log_map, student.may_mask, out=buffers.take("B", *log_map.shape))
    most = maps.amax(-1, keepdim=True)
    log_map.sub_(torch.where(most > 0, log_map.amax(-1, keepdim=True), 0.0))
    if student.hides:
        log_map.masked_fill_(target == 0, 0.0)  # 0 log 0
    mass = (
        target.sum(-1, keepdim=True) if job.teacher.masks else most.new_ones(())
    )  # 0 for rows that are masked altogether
    terms = -torch.linalg.vecdot(target, log_map) - (torch.where(most > 0, most.log(), 0.0) * mass)[..., 0]
    if job.measure == "kl":
        log_target = torch.clamp(target, min=torch.finfo(target.dtype).tiny, out=log_map).log_()
        terms += torch.linalg.vecdot(target, log_target)
    if not job.gradients:
        return terms, terms
    if job.teacher.masks:
        maps.mul_(mass)
    return terms, maps.sub_(target)


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
