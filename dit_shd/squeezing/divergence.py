"""Divergence of the student's attention maps from the squeezed teacher's.

KL of arXiv 2502.07436, eq. 10-11, with both maps at an attention temperature T and the bias inside it:
value[b] = mean over n of sum over g of KL(A~[b,g,n,:] || B[b,g,n,:]). With B = softmax(S / T) the gradient is
dS = (B - A~) / (T n), and from it dq, dk and dbias. All backends compute the gradients along with the value and keep
n x d tensors only: streamed.py tile by tile, fused.py from stock attention kernels, triton.py by Triton kernels.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from typing import Any, get_args

import torch
from torch import Tensor

from dit_shd.attention.bias import Bias
from dit_shd.attention.capture import Capture, one_layer
from dit_shd.attention.tiles import CHUNK_MIB, Buffers, full_precision
from dit_shd.core.first_order import first_order
from dit_shd.squeezing.backends.autotune import RUNS, Backend, choose, unfit
from dit_shd.squeezing.backends.job import Job, Measure, Result
from dit_shd.squeezing.squeeze import Squeeze, check_row_weight


def attention_kl(
    teacher: Capture,
    student: Capture,
    squeeze: Squeeze,
    temperature: float = 1.0,
    measure: Measure = "kl",
    backend: Backend = "streamed",
    chunk_mib: float = CHUNK_MIB,
    row_weight: Tensor | None = None,
    check: bool = True,
) -> Tensor:
    """Divergence of the student's maps from the squeezed teacher's, per sample [b].

    Args:
        teacher: Capture of h heads.
        student: Capture of g heads; same samples and tokens, any head width.
        squeeze: Weights of h heads in g.
        temperature: T_a > 0, dividing the scores (bias included) of both.
        measure: `kl`, summed over keys and heads, mean over query rows; `cross_entropy`, KL plus the teacher's entropy
            (the same gradient); `mse`, the squared difference of the maps summed and averaged the same way (the
            paper's table 10 ablation).
        backend: `streamed`, tile by tile; `fused`, stock attention kernels (for GPUs; no student bias, no mse; `kl`
            costs it one more pass, for the entropy); `triton`, Triton kernels (for GPUs; float32, bfloat16 and
            float16); `auto`, streamed on a CPU and the fastest of those that fit on a GPU, measured once for
            each kind of layer.
        chunk_mib: Memory budget for the maps of one tile, in MiB; does not change the result beyond rounding.
        row_weight: [b,n], 0 or more: a factor of every query row's divergence, 1 for None; rows of weight 0 (padding,
            instructions) take no part in value or gradient.
        check: Whether to check that the weights sum to 1, which synchronises with a GPU.

    Returns:
        [b] in float32 (float64 for float64 captures). Gradients reach the student's query, key and bias only. Rows
        whose keys are all masked in the teacher count as 0.

    Raises:
        ValueError: Token counts, head counts, weights or temperature do not fit.
    """
    job, run = divergence_job(
        teacher, student, squeeze, temperature, measure, backend, chunk_mib, row_weight, check=check
    )
    return attached(student, gradients_of(job, run))


def divergence_job(
    teacher: Capture,
    student: Capture,
    squeeze: Squeeze,
    temperature: float = 1.0,
    measure: Measure = "kl",
    backend: Backend = "streamed",
    chunk_mib: float = CHUNK_MIB,
    row_weight: Tensor | None = None,
    check: bool = True,
    buffers: Buffers | None = None,
) -> tuple[Job, Callable[[Job], Result]]:
    """What attention_kl computes, and the backend that does; the arguments are its, and scratch memory to use again."""
    _check(teacher, student, squeeze, temperature, measure, backend)
    if check:
        _check_sums(squeeze)
    row_weight = check_row_weight(row_weight, teacher, "attention_kl", check)
    if squeeze.of is not teacher:  # its weights serve any capture, its sums and maps this one alone
        squeeze = replace(squeeze, row_sums=None, maps={})
    bias_needs_grad = student.bias is not None and student.bias.needs_grad()
    inputs = [student.query, student.key, *student.bias_leaves]
    job = Job(
        teacher=teacher.detach(),
        student=student.detach(),
        squeeze=squeeze,
        temperature=temperature,
        measure=measure,
        chunk_mib=chunk_mib,
        gradients=torch.is_grad_enabled() and any(x.requires_grad for x in inputs),
        bias_needs_grad=bias_needs_grad,
        row_weight=row_weight,
        buffers=buffers,
    )
    return job, RUNS[choose(job) if backend == "auto" else backend]


def gradients_of(job: Job, run: Callable[[Job], Result]) -> list[Tensor]:
    """The value [b] and, if wanted, its gradients: d_query and d_key [b,heads,tokens,d], and those of the bias."""
    with torch.no_grad(), full_precision(job.student.query.device):
        result = run(job)
        value = result.value.to(job.wide)
        if not job.gradients:
            return [value]
        factor = 1.0 / (job.temperature * job.teacher.shape[2])
        totals = () if result.bias is None else [x * factor for x in result.bias.total()]
        grads = (result.d_query, result.d_key)
        return [value, *(grads if result.factor == 1 else torch._foreach_mul(grads, result.factor)), *totals]


def attached(student: Capture, parts: Sequence[Tensor]) -> Tensor:
    """The value [b] with the gradients that gradients_of found, for the student's query, key and bias."""
    if len(parts) == 1:
        return parts[0]
    inputs = student.query, student.key, *student.bias_leaves
    return _Attached.apply(student.bias, len(parts), *parts, *inputs)  # type: ignore[return-value]


def _check(
    teacher: Capture, student: Capture, squeeze: Squeeze, temperature: float, measure: str, backend: str
) -> None:
    one_layer(teacher, "attention_kl: teacher")
    one_layer(student, "attention_kl: student")
    (b, h, n, m), (b_s, g, n_s, m_s) = teacher.shape, student.shape
    if (b, n, m) != (b_s, n_s, m_s):
        raise ValueError(
            f"attention_kl: wanted equal batch and token counts, found teacher (b, n, m) = {(b, n, m)} "
            f"and student {(b_s, n_s, m_s)}"
        )
    if teacher.query.device != student.query.device:
        raise ValueError(
            f"attention_kl: wanted both models on one device, found the teacher on {teacher.query.device} "
            f"and the student on {student.query.device}"
        )
    if squeeze.heads != g or squeeze.weight.shape[:2] != (b, h) or squeeze.weight.shape[2] not in (1, n):
        raise ValueError(
            f"attention_kl: wanted a squeeze of {h} heads into {g} with weights [{b},{h},1 or {n}], "
            f"found {squeeze.heads} groups and weights {list(squeeze.weight.shape)}"
        )
    if not 0 < temperature < inf:
        raise ValueError(f"attention_kl: wanted a temperature above 0 that is finite, found {temperature}")
    if measure not in get_args(Measure):
        raise ValueError(f"attention_kl: measure: wanted one of {', '.join(get_args(Measure))}, found '{measure}'")
    if backend not in get_args(Backend):
        raise ValueError(f"attention_kl: backend: wanted one of {', '.join(get_args(Backend))}, found '{backend}'")
    why_not = unfit(backend, teacher, student, measure, student.bias is not None and student.bias.needs_grad())
    if why_not:
        raise ValueError(f"attention_kl: backend {backend} cannot serve here: {why_not}; use streamed or auto")


def _check_sums(squeeze: Squeeze) -> None:
    sums = torch.zeros_like(squeeze.weight[:, : squeeze.heads]).index_add_(1, squeeze.group, squeeze.weight)
    if not bool(((sums - 1).abs() < 1e-3).all()):
        raise ValueError("attention_kl: wanted weights that sum to 1 in every group, found others (or NaN)")


class _Attached(torch.autograd.Function):
    """A value whose gradients are known: they were computed from the same maps; only n x d tensors are kept."""

    @staticmethod
    def forward(ctx: Any, bias: Bias | None, count: int, *tensors: Tensor) -> Tensor:  # noqa: ANN401
        value, *gradients = tensors[:count]
        query, key, *leaves = tensors[count:]
        ctx.save_for_backward(*gradients)
        ctx.bias, ctx.count, ctx.leaves = bias, count, len(leaves)
        ctx.dtypes = query.dtype, key.dtype
        return value.clone()

    @staticmethod
    @first_order
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # noqa: ANN401
        d_query, d_key, *totals = ctx.saved_tensors
        scale = upstream.to(d_query.dtype)[:, None, None, None]
        grads = ctx.bias.weighted(totals, upstream) if totals else [None] * ctx.leaves
        made = ((x * scale).to(dtype) for x, dtype in zip((d_query, d_key), ctx.dtypes))
        return *(None,) * (2 + ctx.count), *made, *grads
