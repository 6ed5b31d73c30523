"""The heads of a student layer from groups of teacher heads. Pure mathematics in float64.

Queries, keys and values of a group's k heads, concatenated, are k d features; the d' features of a student head are
linear maps of those: q' = C_q q, k' = C_k k, v' = C_v v. The inputs of the layer enter through second moments only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, eq=False)
class HeadMaps:
    """The heads of a student layer as linear maps of the teacher's."""

    query: Tensor
    """C_q [g d', h d]."""
    key: Tensor
    """C_k [g d', h d]."""
    value: Tensor
    """C_v [g d', h d]."""
    back: Tensor
    """S [h d, g d'] with u ~ S z if the maps of a group agree: u = (A_1 V_1 ... A_h V_h), z likewise of the student."""
    share: Tensor
    """Shares of the teacher heads in the map of each student head [g,h]."""

    def idle(self) -> Tensor:
        """Whether each of the features [3 g d'] of queries, keys and values is beyond the rank of its group.

        Such queries and values stay random: their keys, and the rows of S for their values, are zero, so that they do
        not change the output; if all were zero, they would get no gradient.
        """
        query, value = ((c == 0).all(1) for c in (self.query, self.value))
        return torch.cat([query, torch.zeros_like(query), value])


def squeezed_scores(query: Tensor, key: Tensor, weight: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The best scores of d' features for sum_h w_h q_h . k_h, in mean square over independent queries and keys.

    The sum is q^T D k with D = diag(w) over the group's features; its best approximation of rank d' follows from the
    singular values of Q^1/2 D K^1/2 (Eckart and Young). softmax(sum_h w_h S_h) is the normalised geometric mean of the
    maps whose arithmetic mean is the squeezed map: the same if the maps agree.

    Args:
        query: Q = E[q q^T] of the group [k d, k d].
        key: K, the covariance of its keys [k d, k d] (a softmax over keys is invariant to their mean).
        weight: Weights w of the heads [k].
        width: Head width d'.

    Returns:
        C_q and C_k [d', k d]; rows beyond the rank are zero.
    """
    diagonal = weight.repeat_interleave(len(query) // len(weight))
    left, left_inverse = roots(query)
    right, right_inverse = roots(key)
    u, s, v = torch.linalg.svd(left @ (diagonal[:, None] * right))
    root = s[:width].sqrt()[:, None]
    return _padded(root * (u[:, :width].t() @ left_inverse), width), _padded(root * (v[:width] @ right_inverse), width)


def squeezed_values(value: Tensor, out: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The d' features of a group's head outputs that preserve the layer's output best.

    Outputs u = (A_1 V_1 ... A_k V_k) are projected to u W, W = (W_1^O; ...; W_k^O). The best u C_v^T S^T W of rank d'
    in mean square follows from the singular values of U^1/2 W. With white inputs and equal maps that is the truncated
    singular value decomposition of X = sum_i W_i^V W_i^O, the merged head's X_1 + X_2.

    Args:
        value: U, the covariance of u [k d, k d].
        out: W [k d, e].
        width: Head width d'.

    Returns:
        C_v [d', k d] and S [k d, d'] with u W ~ (S C_v u) W; exact up to rank d', zero beyond the rank.
    """
    root, inverse = roots(value)
    u, s, _ = torch.linalg.svd(root @ out, full_matrices=False)
    u, s = u[:, :width], s[:width]
    balance = s.clamp(min=1e-6 * s.max() + torch.finfo(s.dtype).tiny).sqrt()
    passed = s > torch.finfo(s.dtype).tiny  # what W passes nothing of is zero, and not as good as zero: see _fill_idle
    c_v = (inverse @ u * balance * passed).t()
    back = root @ u / balance * passed
    return _padded(c_v, width), pad(back, (0, width - back.shape[1]))


def roots(moment: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric square root of a second moment, and its pseudo-inverse."""
    values, vectors = torch.linalg.eigh(moment)
    root = values.clamp(min=0).sqrt()
    kept = root > 1e-6 * root.max()
    inverse = torch.where(kept, 1 / torch.where(kept, root, 1.0), 0.0)
    return (vectors * root) @ vectors.t(), (vectors * inverse) @ vectors.t()


def _padded(rows: Tensor, count: int) -> Tensor:
    return pad(rows, (0, 0, 0, count - len(rows)))
