"""The heads of a student layer mixed from groups of teacher heads. Pure mathematics in float64.

Queries, keys and values of a group's k heads, concatenated, are k d features; the d' features of a student head are
linear maps of those: q' = C_q q, k' = C_k k, v' = C_v v. The inputs of the layer enter through second moments only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from dit_shd.distillation.initialisation.plan import Heads

Moments = tuple[Tensor, Tensor, Tensor]
"""E[q q^T], the covariance of the keys and that of the heads' outputs [h d, h d]."""


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

    def of(self, tensor: Tensor, dim: int, is_table: bool) -> Tensor:
        """What the student has of a teacher's tensor, in float64.

        Args:
            tensor: W or b of queries, keys and values [3 h d, ...]; W^O [e, h d]; or a table [..., h].
            dim: The axis of the heads, 0 or 1.
            is_table: Whether it has a column for each head.
        """
        x = tensor.double().cpu()
        if dim == 0:
            return torch.block_diag(self.query, self.key, self.value) @ x
        return x @ (self.share.t() if is_table else self.back)

    def idle(self) -> Tensor:
        """Whether each of the features [3 g d'] of queries, keys and values is beyond the rank of its group.

        Such queries and values stay random: their keys, and the rows of S for their values, are zero, so that they do
        not change the output; if all were zero, they would get no gradient.
        """
        query, value = ((c == 0).all(1) for c in (self.query, self.value))
        return torch.cat([query, torch.zeros_like(query), value])


def white_moments(weight: Tensor, bias: Tensor | None) -> Moments:
    """Moments of a layer of white inputs and uniform attention.

    Args:
        weight: W of queries, keys and values [3 h d, e].
        bias: Its bias [3 h d].
    """
    query, key, value = (w @ w.t() for w in weight.chunk(3))
    mean = query.new_zeros(len(query)) if bias is None else bias.chunk(3)[0]
    return query + mean[:, None] * mean, key, value


def head_maps(heads: Heads, moments: Moments, out: Tensor, width: int, student_width: int) -> HeadMaps:
    """The maps of a layer; heads that have no share are left out.

    Args:
        heads: The groups, and the shares in each.
        moments: Of the teacher.
        out: The rows of W^O [h d, e].
        width: d.
        student_width: d'.
    """
    rows = [_head(g, s, moments, out, width, student_width) for g, s in zip(heads.groups, heads.shares)]
    query, key, value, back, share = map(torch.cat, zip(*rows))
    return HeadMaps(query, key, value, back.t(), share)


def _head(
    group: Sequence[int], shares: Sequence[float], moments: Moments, out: Tensor, d: int, d_student: int
) -> tuple[Tensor, ...]:
    """The rows of one student head in C_q, C_k, C_v, S^T and the shares."""
    members = [(i, s) for i, s in zip(group, shares) if s]
    features = torch.tensor([i * d + j for i, _ in members for j in range(d)])
    share = torch.tensor([s for _, s in members], dtype=torch.float64)
    if len(members) == 1 and d == d_student:
        rows = (torch.eye(d, dtype=torch.float64),) * 4
    else:
        query, key, value = (moment[features][:, features] for moment in moments)
        c_q, c_k = squeezed_scores(query, key, share, d_student)
        c_v, back = squeezed_values(value, out[features], d_student)
        # each model divides its scores by the root of its own head width
        rows = c_q * (d_student / d) ** 0.5, c_k, c_v, back.t()
    head_share = _spread(share[None], torch.tensor([i for i, _ in members]), len(out) // d)
    return *(_spread(row, features, len(out)) for row in rows), head_share


def _spread(rows: Tensor, features: Tensor, count: int) -> Tensor:
    """Rows over some features as rows over all."""
    return rows.new_zeros(len(rows), count).index_copy(1, features, rows)


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
