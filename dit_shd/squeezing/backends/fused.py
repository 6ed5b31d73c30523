"""The divergence from PyTorch's fused attention, for GPUs: memory linear in n, without maps or tiles.

Cross-entropy is linear in the teacher's maps. With S = scale q k^T / T of the student (no bias):

    CE = sum_h w_h sum_m A_h (lse - S) = lse - scale/T q . sum_h w_h (A_h K)
    dCE/dq = scale/T (B K - sum_h w_h A_h K),   dCE/dk = scale/T (B^T q - sum_h A_h^T (w_h q))

A_h K and B K are attention with the student's keys as values; A^T q is that attention's gradient by its values. The
student's log-sum-exp alone is streamed (stock attention does not return it), and so is the teacher's entropy, where
KL is asked for.
"""

import torch
from torch import Tensor

from dit_shd.attention.capture import Capture
from dit_shd.attention.streamed import attend
from dit_shd.attention.tiles import Buffers, Maps, Tiling, index_tensor, slices
from dit_shd.squeezing.backends.job import Job, Result
from dit_shd.squeezing.backends.streamed import targets


def unfit(teacher: Capture, student: Capture, measure: str) -> str | None:
    """Why this backend does not support a layer; None if it does."""
    if student.bias is not None:
        return "the student has an additive bias or mask"
    if measure == "mse":
        return "the measure is mse"
    if student.causal and not teacher.causal:
        return "the student is causal and the teacher is not"
    if teacher.positions is not None and (teacher.causal or student.causal):
        return "some query rows of causal attention"
    return None


def run(job: Job) -> Result:
    """Value and gradients of a layer at once; every tensor is n x d."""
    teacher, student = job.teacher, job.student
    result, wide = Result.empty(job), job.wide
    n = teacher.shape[2]
    factor = student.scale / job.temperature
    student_keys, teacher_keys = (
        index_tensor(tuple(x.key_heads(range(x.heads))), x.key.device) for x in (student, teacher)
    )
    query, key = student.query.to(wide), student.key[:, student_keys].to(wide)
    bias = None if teacher.bias is None else teacher.bias.scaled(1 / job.temperature)
    weight = job.squeeze.weight.to(wide)[..., None]  # [b,h,n or 1,1]
    group = job.squeeze.group

    with torch.enable_grad():
        values = key[:, group].detach().requires_grad_()  # the student's keys, as the teacher's values
        by_teacher = attend(  # A_h K
            teacher.query.to(wide),
            teacher.key[:, teacher_keys].to(wide),
            values,
            teacher.scale / job.temperature,
            bias,
            teacher.causal,
            job.chunk_mib,
        )
        own_values = key.detach().requires_grad_()
        by_student = attend(query, key, own_values, factor, None, student.causal) if job.gradients else None  # B K
    mixed = query.new_zeros(query.shape).index_add_(1, group, weight * by_teacher.detach())  # sum_h w_h A_h K
    mass = _mass(job, weight, query)
    terms = _log_sum_exp(job) * mass[..., 0] - factor * (query * mixed).sum(-1)
    result.value += job.weighted(terms).sum((1, 2), dtype=torch.float64) / n
    if job.measure == "kl":
        result.value -= _entropy(job) / n
    if by_student is not None:
        rows = job.weighted(query)
        (teacher_part,) = torch.autograd.grad(by_teacher, values, weight * rows[:, group])
        (student_part,) = torch.autograd.grad(by_student, own_values, rows * mass)
        result.d_query = job.weighted(by_student.detach() * mass - mixed) * (factor / n)
        d_key = (student_part - key.new_zeros(key.shape).index_add_(1, group, teacher_part)) * (factor / n)
        result.d_key.index_add_(1, student_keys, d_key)
    return result


def _mass(job: Job, weight: Tensor, like: Tensor) -> Tensor:
    """The sum of A~ over keys [b,g,n,1]: 1, but 0 in rows whose keys the teacher masks altogether."""
    teacher = job.teacher
    if not teacher.masks:
        return like.new_ones(*like.shape[:3], 1)
    ones = like.new_ones(*teacher.query.shape[:2], teacher.key.shape[2], 1)
    key = teacher.key[:, teacher.key_heads(range(teacher.heads))].to(like.dtype)
    sums = attend(teacher.query.to(like.dtype), key, ones, teacher.scale, teacher.bias, teacher.causal, job.chunk_mib)
    return like.new_zeros(*like.shape[:3], 1).index_add_(1, job.squeeze.group, weight * sums)


def _log_sum_exp(job: Job) -> Tensor:
    """The student's log sum_m exp(S / T) [b,g,n], tile by tile."""
    b, g, n, m = job.student.shape
    buffers = Buffers(job.wide, job.student.query.device)
    result = torch.empty(b, g, n, dtype=job.wide, device=buffers.device)
    tiling = Tiling.choose(b, g, n, m, 2, buffers.device, job.chunk_mib)
    for samples in slices(b, tiling.samples):
        for heads in slices(g, tiling.groups):
            maps = Maps(job.student, samples, range(heads.start, heads.stop), job.temperature, buffers)
            for rows in slices(n, tiling.rows):
                result[samples, heads, rows] = maps.scores(rows).logsumexp(-1)
    return result


def _entropy(job: Job) -> Tensor:
    """Entropy of the squeezed maps A~, summed over n and g [b]."""
    total = torch.zeros(job.teacher.shape[0], dtype=torch.float64, device=job.teacher.query.device)
    for samples, _, target, runs in targets(job, planes=2):
        for rows in runs:
            mixed = target.rows(rows)
            logs = mixed.clamp(min=torch.finfo(mixed.dtype).tiny).log_()
            entropy = job.weighted(torch.linalg.vecdot(mixed, logs), samples, rows)
            total[samples] -= entropy.sum((1, 2), dtype=torch.float64)
    return total
