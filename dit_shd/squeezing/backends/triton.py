"""The divergence by kernels in Triton, for GPUs: nothing n x m is ever written, and no gradient is computed twice.

Queries and keys are read in the precision that the models have; products and sums are in float32.
"""

import importlib.util
from typing import Any

import torch

from dit_shd.attention.bias import Bias, BiasGradient, DenseBias
from dit_shd.attention.kernels.captures import side_of
from dit_shd.attention.relative_bias import RelativeBias
from dit_shd.squeezing.backends.job import Job, Result
from dit_shd.squeezing.kernels.captures import row_sums

if importlib.util.find_spec("triton"):
    from dit_shd.squeezing.kernels import launch as operators
else:  # it is not made for every platform
    operators: Any = None


def run(job: Job) -> Result:
    """Value and gradients of a layer."""
    teacher, student = job.teacher, job.student
    n = teacher.shape[2]
    known = job.squeeze.row_sums if job.temperature == 1 else None
    top, inverse = row_sums(teacher, job.temperature) if known is None else known
    row_weight = top.new_ones(1, n) if job.row_weight is None else job.row_weight.float().contiguous()
    largest = None
    if job.row_weight is not None and student.query.dtype == torch.float16:  # rows that count for many overflow it
        largest = row_weight.amax().clamp(min=1)
        row_weight = row_weight / largest
    kept = row_sums(student, job.temperature)
    learns = job.gradients and job.bias_needs_grad
    bias = student.bias.gradient(teacher.shape[0]) if student.bias is not None and learns else None
    collect, shape = _collected(student.bias, bias)
    sides = side_of(teacher, job.temperature), side_of(student, job.temperature)
    terms, d_query, d_key, d_bias = operators.divergence(
        *_flat(sides[0]), *_flat(sides[1]), job.squeeze.weight.float(), top, inverse, *kept, row_weight,
        _student_heads(job), job.measure, job.gradients, collect, shape,
    )  # fmt: skip
    value = job.weighted(terms).sum((1, 2), dtype=torch.float64) / n
    if largest is not None:
        d_key, d_bias = d_key * largest, d_bias.mul_(largest)
    if bias is not None:
        bias.collected = d_bias.view(bias.shape)
    shared = student.heads // student.key.shape[1]
    d_key = d_key.unflatten(1, (-1, shared)).sum(2) if job.gradients and shared > 1 else d_key
    return Result(value, job.weighted(d_query), d_key, bias, student.scale / job.temperature / n)


def _student_heads(job: Job) -> list[int]:
    """The student head of each teacher head [h]."""
    of = {head: g for g, members in enumerate(job.squeeze.plan) for head in members}
    return [of[head] for head in range(job.teacher.heads)]


def _flat(side: dict[str, Any]) -> tuple[Any, ...]:
    return side["tensors"], side["bias"], side["causal"], [side["factor"], side["bias_factor"]], side["offset"]


def _collected(bias: Bias | None, gradient: BiasGradient | None) -> tuple[str, list[int]]:
    """How a bias's gradient is collected, and the shape of what it is collected in."""
    if bias is None or gradient is None:
        return "none", [0]
    shape = list(gradient.shape)
    if isinstance(bias, DenseBias):
        return "dense", shape
    assert isinstance(bias, RelativeBias)
    if bias.code is not None:
        return "entries", shape
    b, h, window, _ = shape
    return "lines", [b, h, window, 2 * window - 1, window]
