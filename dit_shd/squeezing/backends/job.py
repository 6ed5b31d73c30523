"""Input and result of a backend: the divergence of one layer."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dit_shd.attention.bias import BiasGradient
from dit_shd.attention.capture import Capture
from dit_shd.attention.tiles import Buffers
from dit_shd.core.precision import wide_dtype
from dit_shd.squeezing.squeeze import Squeeze

Measure = Literal["kl", "cross_entropy", "mse"]


@dataclass(frozen=True, eq=False)
class Job:
    """The divergence of one layer to compute; both captures are detached."""

    teacher: Capture
    student: Capture
    squeeze: Squeeze
    temperature: float
    measure: Measure
    chunk_mib: float
    gradients: bool
    bias_needs_grad: bool
    row_weight: Tensor | None = None
    """Weight of each query row [b,n]; None: 1."""
    buffers: Buffers | None = None
    """Scratch memory; None: fresh."""

    @property
    def wide(self) -> torch.dtype:
        """What is computed in: float32, or float64 if the student is."""
        return wide_dtype(self.student.query)

    def weighted(self, terms: Tensor, samples: slice = slice(None), rows: slice = slice(None)) -> Tensor:
        """Terms of some samples and query rows times the rows' weights; weight 0 makes 0, also of NaN.

        Args:
            terms: [s,g,r] or [s,g,r,k].
            samples: Numbers of the s samples taken of b.
            rows: Numbers of the r rows taken of n.
        """
        if self.row_weight is None:
            return terms
        weight = self.row_weight[samples, None, rows]
        weight = weight if terms.ndim == 3 else weight[..., None]
        return torch.where(weight > 0, terms * weight, torch.zeros_like(terms))


@dataclass(eq=False)
class Result:
    """The divergence of every sample, and its gradients by query, key and bias."""

    value: Tensor
    """[b], float64"""
    d_query: Tensor
    """[b,g,n,d]"""
    d_key: Tensor
    """[b,g,m,d], or fewer heads where heads share keys"""
    bias: BiasGradient | None
    """In units of the scores over T, not yet divided by n T."""
    factor: float = 1.0
    """What d_query and d_key are still to be multiplied by."""

    @classmethod
    def empty(cls, job: Job) -> "Result":
        """A result of zeros, to which a backend adds; without gradients only the value is allocated."""
        student = job.student
        value = torch.zeros(student.shape[0], dtype=torch.float64, device=student.query.device)
        if not job.gradients:
            return cls(value, value, value, None)
        d_query, d_key = (torch.zeros(x.shape, dtype=job.wide, device=x.device) for x in (student.query, student.key))
        bias = student.bias if job.bias_needs_grad else None
        return cls(value, d_query, d_key, None if bias is None else bias.gradient(student.shape[0]))
