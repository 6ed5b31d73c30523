"""How far the student's attention maps are from the squeezed teacher's, streamed over chunks of query rows.

KL of arXiv 2502.07436, eq. 10-11, with both maps at an attention temperature T and the bias inside it:
value[b] = mean over n of sum over g of KL(A~[b,g,n,:] || B[b,g,n,:]). With B = softmax(S / T) the gradient is
dS = (B - A~) / (T n), and from it dq, dk and dbias; all of them come out of the same pass over the rows, so no map
outlives its chunk, forward or backward.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from dit_shd.attention import Capture
from dit_shd.attention.softmax import softmax
from dit_shd.attention.streamed import CHUNK_MIB, row_chunks
from dit_shd.squeezing import Squeeze

Measure = Literal["kl", "mse"]


def attention_kl(
    teacher: Capture,
    student: Capture,
    squeeze: Squeeze,
    temperature: float = 1.0,
    measure: Measure = "kl",
    chunk_mib: float = CHUNK_MIB,
) -> Tensor:
    """Divergence of the student's maps from the squeezed teacher's, per sample [b].

    Args:
        teacher: h heads. student: g heads; same samples and tokens, any head widths. squeeze: h -> g.
        temperature: T_a > 0, dividing the scores (bias included) of both.
        measure: `kl`, summed over keys and heads, mean over query rows; `mse`, the squared difference of the maps
            summed and averaged the same way (the paper's table 10 ablation).
        chunk_mib: memory budget for the maps of one chunk, in MiB; does not change the result beyond rounding.

    Returns:
        [b] in float32 (float64 for float64 captures). Gradients reach the student's query, key and bias only. Rows
        whose keys are all masked count as 0.

    Raises:
        ValueError: token counts, head counts, weights or temperature that do not fit.
    """
    _check(teacher, student, squeeze, temperature, measure)
    leaves = () if student.bias is None else student.bias.leaves
    job = _Job(teacher, student, squeeze, temperature, measure, chunk_mib)
    return _AttentionDivergence.apply(job, student.query, student.key, *leaves)  # type: ignore[return-value]


def _check(teacher: Capture, student: Capture, squeeze: Squeeze, temperature: float, measure: str) -> None:
    (b, h, n, m), (b_s, g, n_s, m_s) = teacher.shape, student.shape
    if (b, n, m) != (b_s, n_s, m_s):
        raise ValueError(
            f"attention_kl: wanted equal batch and token counts, found teacher (b, n, m) = {(b, n, m)} "
            f"and student {(b_s, n_s, m_s)}"
        )
    if squeeze.heads != g or squeeze.weight.shape[:2] != (b, h) or squeeze.weight.shape[2] not in (1, n):
        raise ValueError(
            f"attention_kl: wanted a squeeze of {h} heads into {g} with weights [{b},{h},1 or {n}], "
            f"found {squeeze.heads} groups and weights {list(squeeze.weight.shape)}"
        )
    sums = torch.zeros_like(squeeze.weight[:, :g]).index_add_(1, squeeze.group, squeeze.weight)
    if not bool(((sums - 1).abs() < 1e-3).all()):
        raise ValueError("attention_kl: wanted weights that sum to 1 in every group, found others (or NaN)")
    if not temperature > 0:
        raise ValueError(f"attention_kl: wanted a temperature above 0, found {temperature}")
    if measure not in ("kl", "mse"):
        raise ValueError(f"attention_kl: measure: wanted kl or mse, found '{measure}'")


class _Job:
    """One layer's divergence, ready to be streamed."""

    def __init__(
        self,
        teacher: Capture,
        student: Capture,
        squeeze: Squeeze,
        temperature: float,
        measure: str,
        chunk_mib: float,
    ):
        self.teacher, self.student, self.squeeze = teacher.detach(), student.detach(), squeeze
        self.bias_learns = student.bias is not None and student.bias.needs_grad()
        self.temperature, self.measure, self.chunk_mib = temperature, measure, chunk_mib

    def run(self, sample_weight: Tensor | None, gradients: bool) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """One pass over the rows.

        Returns:
            value[b], and, if asked for, d value[b] / d query and / d key (each sample's own), and the gradients of
            the bias's leaves summed over samples with `sample_weight` (ones if None).
        """
        teacher, student = self.teacher, self.student
        b, h, n, m = teacher.shape
        wide = torch.promote_types(student.query.dtype, torch.float32)
        query, key = student.query.to(wide), student.key.to(wide)
        value = torch.zeros(b, dtype=wide, device=query.device)
        d_query, d_key = (torch.zeros_like(query), torch.zeros_like(key)) if gradients else (query, key)
        bias = student.bias
        bias_grads = bias.zero_grads() if gradients and bias is not None and self.bias_learns else []
        for rows in row_chunks(b, h + 2 * student.heads, n, m, self.chunk_mib):
            target = self.squeeze.mix(teacher.map(rows, self.temperature), rows).to(wide)
            terms, d_scores = _MEASURES[self.measure](target, student.scores(rows) / self.temperature, gradients)
            value += terms.sum((1, 2)) / n
            if not gradients:
                continue
            d_scores = d_scores.div_(self.temperature * n)
            if bias_grads:
                weighted = d_scores if sample_weight is None else d_scores * sample_weight[:, None, None, None]
                bias.accumulate(bias_grads, rows, weighted)  # type: ignore[union-attr]
            d_query[:, :, rows] = student.scale * (d_scores @ key)
            d_key += student.scale * (d_scores.transpose(2, 3) @ query[:, :, rows])
        return value, d_query, d_key, bias_grads


def _kl(target: Tensor, scores: Tensor, gradients: bool) -> tuple[Tensor, Tensor]:
    """KL per row [b,g,r] and its gradient by the scores [b,g,r,m]: B sum(A~) - A~."""
    log_student = torch.log_softmax(scores, dim=-1)
    terms = torch.where(target > 0, target * (target.clamp(min=1e-45).log() - log_student), 0.0).sum(-1)
    if not gradients:
        return terms, terms
    mass = target.sum(-1, keepdim=True)
    return terms, torch.nan_to_num(log_student.exp_(), nan=0.0).mul_(mass).sub_(target)


def _mse(target: Tensor, scores: Tensor, gradients: bool) -> tuple[Tensor, Tensor]:
    """Squared difference per row [b,g,r] and its gradient by the scores: B * (G - sum_m B G), G = 2 (B - A~)."""
    student = softmax(scores)
    gap = student - target
    terms = gap.square().sum(-1)
    if not gradients:
        return terms, terms
    weighted = (student * gap).sum(-1, keepdim=True)
    return terms, gap.sub_(weighted).mul_(student).mul_(2)


_MEASURES = {"kl": _kl, "mse": _mse}


class _AttentionDivergence(torch.autograd.Function):
    """Computes gradients along with the value: both come from the same maps, and only n x d tensors are kept."""

    @staticmethod
    def forward(ctx: Any, job: _Job, query: Tensor, key: Tensor, *leaves: Tensor) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        with torch.autocast(query.device.type, enabled=False):
            value, d_query, d_key, bias_grads = job.run(None, wanted)
        if wanted:
            ctx.save_for_backward(d_query, d_key, *bias_grads)
            ctx.job, ctx.dtype = job, query.dtype
            ctx.leaf_dtypes = [leaf.dtype for leaf in leaves]
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_query, d_key, *bias_grads = ctx.saved_tensors
        each = upstream.to(d_query.dtype)[:, None, None, None]
        if bias_grads and bool((upstream == upstream[0]).all()):
            bias_grads = [grad * upstream[0] for grad in bias_grads]
        elif bias_grads:  # samples weighted unequally: the sum over samples has to be taken again
            with torch.no_grad(), torch.autocast(upstream.device.type, enabled=False):
                *_, bias_grads = ctx.job.run(upstream.to(d_query.dtype), True)
        leaf_grads = [g.to(t) for g, t in zip(bias_grads, ctx.leaf_dtypes)] or [None] * len(ctx.leaf_dtypes)
        return None, (d_query * each).to(ctx.dtype), (d_key * each).to(ctx.dtype), *leaf_grads
