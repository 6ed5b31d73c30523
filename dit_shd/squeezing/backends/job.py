"""One layer's divergence, as every backend takes it, and what a backend gives back."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dit_shd.attention.bias import BiasGradient
from dit_shd.attention.capture import Capture
from dit_shd.squeezing.squeeze import Squeeze

Measure = Literal["kl", "cross_entropy", "mse"]


@dataclass(frozen=True, eq=False)
class Job:
    """Both captures are detached."""

    teacher: Capture
    student: Capture
    squeeze: Squeeze
    temperature: float
    measure: Measure
    chunk_mib: float
    gradients: bool
    bias_learns: bool
    row_weight: Tensor | None = None
    """[b,n]: what each query row counts; None: 1 each."""

    def weighted(self, terms: Tensor, samples: slice = slice(None), rows: slice = slice(None)) -> Tensor:
        """Terms of some samples and query rows, each times its row's weight; what counts 0 is 0, also where it is NaN.

        Args:
            terms: [s,g,r] or [s,g,r,k].
        """
        if self.row_weight is None:
            return terms
        weight = self.row_weight[samples, None, rows]
        weight = weight if terms.ndim == 3 else weight[..., None]
        return torch.where(weight > 0, terms * weight, torch.zeros_like(terms))


@dataclass(eq=False)
class Result:
    """Every sample's own: value [b] and the gradients of value[b] by query, key and bias."""

    value: Tensor
    """[b], float64"""
    d_query: Tensor
    """[b,g,n,d]"""
    d_key: Tensor
    """[b,g,m,d], or fewer heads where they are shared"""
    bias: BiasGradient | None
    """In units of the scores over T, not yet divided by n T."""

    @classmethod
    def empty(cls, job: Job, dtype: torch.dtype) -> "Result":
        student = job.student
        value = torch.zeros(student.shape[0], dtype=torch.float64, device=student.query.device)
        if not job.gradients:
            return cls(value, value, value, None)
        d_query, d_key = (torch.zeros(x.shape, dtype=dtype, device=x.device) for x in (student.query, student.key))
        learns = job.bias_learns and student.bias is not None
        return cls(value, d_query, d_key, student.bias.gradient(student.shape[0]) if learns else None)  # type: ignore[union-attr]
