"""The weights of a group of heads in closed form, from inner products (products.py). Pure mathematics in float64.

In a group of k heads the squeezed map is A~ = sum_i w_i A_i with weights that sum to 1; with D_i = A_i - A_k,
X = sum_a X_a and Z = sum_a D_a X_a its error is sum_{i<k} w_i D_i X - Z. The error is "flat" if no
weight changes it beyond rounding (equal maps, or values that cancel): then all weights are set equal.
"""

import torch
from torch import Tensor

from dit_shd.attention.tiles import index_tensor
from dit_shd.squeezing.products import Products


def progressive(table: Tensor, norm: Tensor, clamp: bool, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the heads of each group left to right, alpha in closed form at each merge (arXiv 2502.07436, eq. 5-9).

    Merging the output so far, A~ X~ (X~ the sum of its heads' X), with the next head A X: with D = A~ - A,
    u = D X~ and v = D X, the alpha that minimises ||(alpha A~ + (1-alpha) A)(X~ + X) - (A~ X~ + A X)||^2 is
    <u+v, u> / ||u+v||^2 (the sign of eq. 7 as the expansion of the objective gives it).

    Args:
        table: <D_i X_a, D_j X_c> [b,G,k-1,k,k-1,k].
        norm: ||Y||^2 [b,G].
        clamp: Whether to keep alpha in [0, 1].
        eps: Rounding unit of the maps.

    Returns:
        Weights w [b,G,k], alpha [b,G,k-1] and whether it was outside of [0, 1] [b,G,k-1].
    """
    b, groups, _, k, _, _ = table.shape
    if k == 2:  # one merge, D = D_1
        alpha, outside = _merge(table[:, :, 0, :, 0], norm, clamp, eps)
        return torch.stack([alpha, 1 - alpha], dim=2), alpha[..., None], outside[..., None]
    weight = torch.zeros(b, groups, k, dtype=table.dtype, device=table.device)
    weight[:, :, 0] = 1.0
    alphas, clamps = [], []
    for new in range(1, k):
        difference = weight.clone()
        difference[:, :, new] = -1.0  # D = A~ - A_new in terms of the maps, so of D_i too (coefficients sum to 0)
        c = difference[:, :, : k - 1]
        inner = torch.einsum("bgi,bgj,bgiajc->bgac", c, c, table)  # <D X_a, D X_c>
        alpha, outside = _merge(inner[:, :, : new + 1, : new + 1], norm, clamp, eps)
        weight = weight * alpha[..., None]
        weight[:, :, new] = 1 - alpha
        alphas.append(alpha)
        clamps.append(outside)
    return weight, torch.stack(alphas, dim=2), torch.stack(clamps, dim=2)


def _merge(inner: Tensor, norm: Tensor, clamp: bool, eps: float) -> tuple[Tensor, Tensor]:
    """One merge: alpha of all heads but the last with the last, and whether it was outside of [0, 1], both [b,G].

    Args:
        inner: <D X_a, D X_c> [b,G,a,c] of the heads so far and, last, the new one. Its D X is v, the others' sum is u.
        norm: ||Y||^2 [b,G].
        clamp: Whether to keep alpha in [0, 1].
        eps: Rounding unit of the maps.
    """
    with_u = inner[:, :, :-1].sum(2)  # <u, D X_c> [b,G,c]
    u_norm = with_u[:, :, :-1].sum(2)
    return pair(with_u.sum(2), inner.sum((2, 3)), u_norm, norm, clamp, eps)


def pair(
    numerator: Tensor, denominator: Tensor, u_norm: Tensor, norm: Tensor, clamp: bool, eps: float
) -> tuple[Tensor, Tensor]:
    """Alpha = <u+v,u> / ||u+v||^2 (eq. 7), 0.5 where the error is flat, and whether it was outside of [0, 1].

    All tensors are of one shape: [b,G], or [b,G,n] of each query row.

    Args:
        numerator: <u+v,u>.
        denominator: ||u+v||^2.
        u_norm: ||u||^2.
        norm: ||Y||^2.
        clamp: Whether to keep alpha in [0, 1].
        eps: Rounding unit of the maps.
    """
    squares = denominator - 2 * (numerator - u_norm)  # ||u||^2 + ||v||^2
    flat = denominator <= torch.maximum(64 * eps * squares, (8 * eps) ** 2 * norm)
    alpha = torch.where(flat, 0.5, numerator / denominator)
    inside = alpha.clamp(0, 1)
    return inside if clamp else alpha, inside != alpha


def joint(products: Products, eps: float) -> Tensor:
    """The least-squares weights of each group on the simplex: [b,G,k], or [b,G,n,k] from products of each row.

    For pairs this is the clamped alpha. No other weights on the simplex, progressive ones included, have a smaller
    error.
    """
    gram, target, z_norm = products.quadratic
    if target.shape[-1] == 1:
        alpha, _ = pair(target[..., 0], gram[..., 0, 0], z_norm, products.norm, True, eps)
        return torch.stack([alpha, 1 - alpha], dim=-1)
    *lead, less = target.shape
    padded = gram.new_zeros(*lead, less + 1, less + 1)  # the last head's row and column are zero: D_k = 0
    padded[..., :less, :less] = gram
    ridge = (8 * eps) ** 2 * products.norm + 1e-12 * gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    padded.diagonal(dim1=-2, dim2=-1).add_(ridge[..., None] + torch.finfo(gram.dtype).tiny)  # decides where flat
    weight = simplex_least_squares(padded.flatten(0, -3), torch.nn.functional.pad(target, (0, 1)).flatten(0, -2))
    return weight.view(*lead, less + 1)


def simplex_least_squares(gram: Tensor, target: Tensor) -> Tensor:
    """Minimise w'Gw/2 - w't over w >= 0, sum w = 1, for N problems at once, by active sets (after Lawson and Hanson).

    Each round solves the equality-constrained problem on every current support. Where that leaves the simplex, the
    step stops at its face and the support shrinks; else the coordinate with the steepest descent joins the support.

    Args:
        gram: G [N,k,k], positive definite.
        target: Vectors t [N,k].

    Returns:
        Weights w [N,k].
    """
    count, k = target.shape
    scale = gram.diagonal(dim1=1, dim2=2).amax(1).clamp(min=torch.finfo(gram.dtype).tiny)
    gram, target = gram / scale[:, None, None], target / scale[:, None]
    start = (gram.diagonal(dim1=1, dim2=2) / 2 - target).argmin(1)
    weight = torch.nn.functional.one_hot(start, k).to(gram.dtype)
    support = weight > 0
    unsolved = torch.arange(count, device=gram.device)
    for _ in range(20 * k):
        if not len(unsolved):
            break
        g, t, w, active = gram[unsolved], target[unsolved], weight[unsolved], support[unsolved]
        solved = _on_support(g, t, active)
        leaves = active & (solved <= 0)
        length = torch.where(leaves, w / (w - solved).clamp(min=torch.finfo(g.dtype).tiny), 1.0).amin(1, keepdim=True)
        w = w + length * (solved - w)
        active = active & ~(leaves & (w <= 1e-14))
        w = torch.where(active, w, 0.0)
        w = w / w.sum(1, keepdim=True)
        slope = (g @ w[..., None])[..., 0] - t
        slope = slope - (slope * w).sum(1, keepdim=True)
        inside = ~leaves.any(1)
        steepest = torch.where(active, float("inf"), slope).min(1)
        joins = inside & (steepest.values < -1e-13)
        active = active | (torch.nn.functional.one_hot(steepest.indices, k).bool() & joins[:, None])
        weight[unsolved], support[unsolved] = w, active
        unsolved = unsolved[~inside | joins]
    return weight


def _on_support(gram: Tensor, target: Tensor, active: Tensor) -> Tensor:
    """Minimise w'Gw/2 - w't over sum w = 1 with w = 0 outside the support (the KKT system [N,k+1,k+1])."""
    count, k = target.shape
    system = gram.new_zeros(count, k + 1, k + 1)
    both = active[:, :, None] & active[:, None, :]
    system[:, :k, :k] = torch.where(both, gram, torch.eye(k, dtype=gram.dtype, device=gram.device))
    system[:, :k, :k].masked_fill_(active[:, :, None] & ~active[:, None, :], 0.0)
    system[:, :k, k] = active.to(gram.dtype)
    system[:, k, :k] = active.to(gram.dtype)
    right = torch.cat([torch.where(active, target, 0.0), target.new_ones(count, 1)], dim=1)
    return torch.linalg.solve(system, right)[:, :k]


def relative_residual(products: Products, weight: Tensor) -> Tensor:
    """The relative error ||A~ X - Y|| / ||Y|| [b,G] of weights [b,G,k], or [b,G,n,k]; 0 where both norms are 0."""
    norm = products.norm
    if products.table is not None:
        k = weight.shape[-1]
        eye = index_tensor(tuple(int(i == a) for i in range(k - 1) for a in range(k)), weight.device).view(k - 1, k)
        c = (weight[..., :-1, None] - eye).flatten(2)  # sum_i (w_i - [i=a]) D_i X_a
        table = products.table.flatten(4).flatten(2, 3)  # [b,G,(i,a),(j,c)]
        squared = ((table @ c[..., None])[..., 0] * c).sum(-1)
    else:
        gram, target, z_norm = products.quadratic
        w = weight[..., :-1]
        squared = torch.einsum("bgni,bgnj,bgnij->bgn", w, w, gram)
        squared = (squared - 2 * (w * target).sum(-1) + z_norm).sum(-1)
        norm = norm.sum(-1)
    ratio = squared.clamp(min=0) / norm.clamp(min=torch.finfo(norm.dtype).tiny)
    return torch.where(norm == 0, 0.0, ratio.sqrt())  # NaN stays NaN
