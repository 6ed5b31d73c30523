"""The weights of a group of heads, in closed form, from inner products (products.py). Pure mathematics in float64.

In a group of k heads the squeezed map is A~ = sum_i w_i A_i with weights that sum to 1; with D_i = A_i - A_k,
X = sum_a X_a and Z = sum_a D_a X_a its error is sum_{i<k} w_i D_i X - Z. "Flat" is an error that no weight changes
beyond rounding (equal maps, or values that cancel): then every weight is as good, and all are equal.
"""

import torch
from torch import Tensor

from dit_shd.squeezing.products import Products


def progressive(table: Tensor, norm: Tensor, clamp: bool, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the heads of each group left to right, alpha in closed form at each merge (arXiv 2502.07436, eq. 5-9).

    Merging the output so far, A~ X~ (X~ the sum of its heads' X), with the next head A X: with D = A~ - A,
    u = D X~ and v = D X, the alpha that minimises ||(alpha A~ + (1-alpha) A)(X~ + X) - (A~ X~ + A X)||^2 is
    <u+v, u> / ||u+v||^2 (the sign of eq. 7 as the expansion of the objective gives it).

    Args:
        table, norm: of Products. eps: rounding unit of the maps.

    Returns:
        w[b,G,k], alpha[b,G,k-1] and where it was clamped [b,G,k-1].
    """
    b, groups, _, k, _, _ = table.shape
    weight = torch.zeros(b, groups, k, dtype=table.dtype, device=table.device)
    weight[:, :, 0] = 1.0
    alphas, clamps = [], []
    for new in range(1, k):
        difference = weight.clone()
        difference[:, :, new] = -1.0  # D = A~ - A_new in terms of the maps, so of D_i too (coefficients sum to 0)
        c = difference[:, :, : k - 1]
        ahead = torch.einsum("bgi,bgj,bgiajc->bgac", c, c, table)  # <D X_a, D X_c>
        uu = ahead[:, :, :new, :new].sum((2, 3))
        uv = ahead[:, :, :new, new].sum(2)
        vv = ahead[:, :, new, new]
        alpha, outside = pair(uu + 2 * uv + vv, uu + uv, uu, norm, clamp, eps)
        weight = weight * alpha[..., None]
        weight[:, :, new] = 1 - alpha
        alphas.append(alpha)
        clamps.append(outside)
    return weight, torch.stack(alphas, dim=2), torch.stack(clamps, dim=2)


def pair(total: Tensor, ahead: Tensor, uu: Tensor, norm: Tensor, clamp: bool, eps: float) -> tuple[Tensor, Tensor]:
    """alpha = <u+v,u> / ||u+v||^2 from ||u+v||^2, <u+v,u> and ||u||^2; 0.5 where flat. Also where it left [0,1]."""
    vv = total - 2 * ahead + uu
    flat = (total <= 64 * eps * (uu + vv)) | (total <= (8 * eps) ** 2 * norm)
    alpha = torch.where(flat, 0.5, ahead / torch.where(flat, 1.0, total))
    outside = (alpha < 0) | (alpha > 1)
    return alpha.clamp(0, 1) if clamp else alpha, outside


def joint(products: Products, eps: float) -> Tensor:
    """The best weights of each group on the simplex: [b,G,k], or [b,G,n,k] from products of each row.

    For pairs this is the clamped alpha; its error is never above that of any other weights, progressive ones included.
    """
    gram, target = products.gram, products.target
    if target.shape[-1] == 1:
        alpha, _ = pair(gram[..., 0, 0], target[..., 0], products.own, products.norm, True, eps)
        return torch.stack([alpha, 1 - alpha], dim=-1)
    *lead, less = target.shape
    whole = gram.new_zeros(*lead, less + 1, less + 1)  # the last head's own row and column are zero: D_k = 0
    whole[..., :less, :less] = gram
    ridge = (8 * eps) ** 2 * products.norm + 1e-12 * gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    whole.diagonal(dim1=-2, dim2=-1).add_(ridge[..., None] + torch.finfo(gram.dtype).tiny)  # decides where flat
    found = simplex_least_squares(whole.flatten(0, -3), torch.nn.functional.pad(target, (0, 1)).flatten(0, -2))
    return found.view(*lead, less + 1)


def simplex_least_squares(gram: Tensor, target: Tensor) -> Tensor:
    """argmin of w'Gw/2 - w't over w >= 0, sum w = 1, by active sets, many at once (after Lawson and Hanson's NNLS).

    Each round solves the equality-constrained problem on every current support. Where that leaves the simplex, the
    step stops at its face and the support shrinks; else the coordinate with the steepest descent joins the support.

    Args:
        gram: [N,k,k], positive definite. target: [N,k].

    Returns:
        w [N,k]
    """
    count, k = target.shape
    scale = gram.diagonal(dim1=1, dim2=2).amax(1).clamp(min=torch.finfo(gram.dtype).tiny)
    gram, target = gram / scale[:, None, None], target / scale[:, None]
    start = (gram.diagonal(dim1=1, dim2=2) / 2 - target).argmin(1)
    weight = torch.nn.functional.one_hot(start, k).to(gram.dtype)
    support = weight > 0
    todo = torch.arange(count, device=gram.device)
    for _ in range(20 * k):
        if not len(todo):
            break
        g, t, w, held = gram[todo], target[todo], weight[todo], support[todo]
        solved = _on_support(g, t, held)
        leaves = held & (solved <= 0)
        length = torch.where(leaves, w / (w - solved).clamp(min=torch.finfo(g.dtype).tiny), 1.0).amin(1, keepdim=True)
        w = w + length * (solved - w)
        held = held & ~(leaves & (w <= 1e-14))
        w = torch.where(held, w, 0.0)
        w = w / w.sum(1, keepdim=True)
        slope = (g @ w[..., None])[..., 0] - t
        slope = slope - (slope * w).sum(1, keepdim=True)
        inside = ~leaves.any(1)
        steepest = torch.where(held, float("inf"), slope).min(1)
        joins = inside & (steepest.values < -1e-13)
        held = held | (torch.nn.functional.one_hot(steepest.indices, k).bool() & joins[:, None])
        weight[todo], support[todo] = w, held
        todo = todo[~inside | joins]
    return weight


def _on_support(gram: Tensor, target: Tensor, held: Tensor) -> Tensor:
    """argmin of w'Gw/2 - w't over sum w = 1 with w = 0 outside the support (its KKT system, [N,k+1,k+1])."""
    count, k = target.shape
    system = gram.new_zeros(count, k + 1, k + 1)
    both = held[:, :, None] & held[:, None, :]
    system[:, :k, :k] = torch.where(both, gram, torch.eye(k, dtype=gram.dtype, device=gram.device))
    system[:, :k, :k].masked_fill_(held[:, :, None] & ~held[:, None, :], 0.0)
    system[:, :k, k] = held.to(gram.dtype)
    system[:, k, :k] = held.to(gram.dtype)
    right = torch.cat([torch.where(held, target, 0.0), target.new_ones(count, 1)], dim=1)
    return torch.linalg.solve(system, right)[:, :k]


def relative_residual(products: Products, weight: Tensor) -> Tensor:
    """||A~ X - Y|| / ||Y|| [b,G] of weights [b,G,k] (or [b,G,n,k] with products of each row); 0 where both are 0."""
    norm = products.norm
    if products.table is not None:
        k = weight.shape[-1]
        eye = torch.eye(k, dtype=weight.dtype, device=weight.device)
        c = (weight[..., None] - eye)[:, :, : k - 1]  # sum_i (w_i - [i=a]) D_i X_a
        squared = torch.einsum("bgia,bgjc,bgiajc->bg", c, c, products.table)
    else:
        w = weight[..., :-1]
        squared = torch.einsum("bgni,bgnj,bgnij->bgn", w, w, products.gram)
        squared = (squared - 2 * (w * products.target).sum(-1) + products.own).sum(-1)
        norm = norm.sum(-1)
    ratio = squared.clamp(min=0) / norm.clamp(min=torch.finfo(norm.dtype).tiny)
    return torch.where(norm == 0, 0.0, ratio.sqrt())  # NaN stays NaN
