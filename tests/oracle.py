"""The mathematics once more, naively: whole maps, whole n x e products, autograd. Slow, and right by reading.

float64 unless told otherwise; nothing here comes from dit_shd but the containers it is given.
"""

import torch


def scores(query, key, scale, bias=None, causal=False):
    s = torch.einsum("bhnd,bhmd->bhnm", query, key) * scale
    if bias is not None:
        s = s + bias
    if causal:
        n, m = s.shape[-2:]
        s = s.masked_fill(torch.ones(n, m, dtype=torch.bool, device=s.device).triu(1), float("-inf"))
    return s


def maps(query, key, scale, bias=None, causal=False, temperature=1.0):
    a = (scores(query, key, scale, bias, causal) / temperature).softmax(-1)
    return torch.where(torch.isnan(a), torch.zeros_like(a), a)


def head_outputs(value, out):
    """X[b,h,m,e] = V W^O"""
    return torch.einsum("bhmd,hde->bhme", value, out)


def alpha_of_pair(a1, x1, a2, x2):
    """The minimiser of ||(alpha A1 + (1-alpha) A2)(X1+X2) - (A1 X1 + A2 X2)||^2 for one sample, by expansion."""
    both = x1 + x2
    second = a2 @ both
    slope = a1 @ both - second
    constant = second - (a1 @ x1 + a2 @ x2)
    return float(-(slope * constant).sum() / (slope * slope).sum())


def merge_progressively(a, x, plan, clamp=True):
    """w[b,g,h] and the alphas [b][merge], one sample and one group at a time."""
    b, h = a.shape[:2]
    w = torch.zeros(b, len(plan), h, dtype=a.dtype, device=a.device)
    alphas = []
    for i in range(b):
        row = []
        for g, members in enumerate(plan):
            first, *others = members
            map_so_far, x_so_far = a[i, first], x[i, first]
            weights = {first: 1.0}
            for head in others:
                alpha = alpha_of_pair(map_so_far, x_so_far, a[i, head], x[i, head])
                if clamp:
                    alpha = min(max(alpha, 0.0), 1.0)
                weights = {k: v * alpha for k, v in weights.items()}
                weights[head] = 1 - alpha
                map_so_far = alpha * map_so_far + (1 - alpha) * a[i, head]
                x_so_far = x_so_far + x[i, head]
                row.append(alpha)
            for head, value in weights.items():
                w[i, g, head] = value
        alphas.append(row)
    return w, torch.tensor(alphas, dtype=a.dtype, device=a.device)


def residual(a, x, w, plan):
    """||A~_g sum X - sum A X|| / ||sum A X|| over the heads of each group [b,g]."""
    member = torch.zeros_like(w)
    for g, heads in enumerate(plan):
        member[:, g, list(heads)] = 1.0
    merged = torch.einsum("bgh,bhnm->bgnm", w, a)
    target = torch.einsum("bgh,bhnm,bhme->bgne", member, a, x)
    ours = torch.einsum("bgnm,bgh,bhme->bgne", merged, member, x)
    return (ours - target).flatten(2).norm(dim=2) / target.flatten(2).norm(dim=2)


def divergence(teacher_maps, student_maps, w, measure="kl"):
    """[b]; w is [b,g,h] or [b,g,h,n]."""
    target = torch.einsum(
        "bghn,bhnm->bgnm",
        w if w.ndim == 4 else w[..., None].expand(-1, -1, -1, teacher_maps.shape[2]),
        teacher_maps,
    )
    if measure == "mse":
        terms = (student_maps - target).square()
    else:
        safe = torch.where(target > 0, target, torch.ones_like(target))
        log_student = torch.where(target > 0, student_maps, torch.ones_like(target)).log()
        terms = torch.where(target > 0, target * (safe.log() - log_student), torch.zeros_like(target))
    return terms.sum((1, 3)).mean(1)
