"""diffkd against its definition, written out; its draws; its parts learn."""

import math
from itertools import pairwise

import loss_checks as checks
import pytest
import torch

from dit_shd.core import rng
from dit_shd.core.errors import UserError


def denoise(p, x, level):
    """The denoiser, token by token."""

    def linear(x, name):
        return torch.einsum("...e,fe->...f", x, p[f"{name}.weight"]) + p[f"{name}.bias"]

    def silu(x):
        return x / (1 + (-x).exp())

    angle = level / 1000 * math.pi / 2
    time = linear(silu(linear(torch.stack([angle.cos(), angle.sin()], 1), "time.0")), "time.2")[:, None]
    for i in range(2):
        y = x + time
        y = (y - y.mean(2, keepdim=True)) / (y.var(2, keepdim=True, correction=0) + 1e-5).sqrt()
        y = y * p[f"blocks.{i}.0.weight"] + p[f"blocks.{i}.0.bias"]
        x = x + linear(silu(linear(y, f"blocks.{i}.1")), f"blocks.{i}.3")
    return linear(x, "out")


def oracle(loss, s, t, bottleneck, seed):
    name = "b.1"
    p = {k.removeprefix("projectors.b_1."): v for k, v in loss.named_parameters()}
    x, y = s[name], t[name]
    z = y if bottleneck is None else y @ p["encode.weight"].T + p["encode.bias"]
    noise = rng.normal(seed, f"diffkd/{name}", 5, [3, 4], (2, *z.shape[1:])).double()
    level = (rng.uniform(seed, f"diffkd/level/{name}", 5, [3, 4]) * 1000).floor()
    angle = (level / 1000 * math.pi / 2)[:, None, None]
    noisy = angle.cos() * z.detach() + angle.sin() * noise[:, 0]
    own = (denoise(p, noisy, level) - noise[:, 0]).square().mean((1, 2))
    x = x @ p["align.weight"].T + p["align.bias"]
    share = torch.sigmoid(x.mean(1) @ p["share.weight"].T + p["share.bias"])[:, None]
    x = share * x + (1 - share) * noise[:, 1]
    levels = [500, 400, 300, 200, 100, 0]
    for now, then in pairwise(levels):
        found = denoise(p, x, torch.full((2,), float(now), dtype=torch.float64))
        clean = (x - math.sin(now / 1000 * math.pi / 2) * found) / math.cos(now / 1000 * math.pi / 2)
        x = math.cos(then / 1000 * math.pi / 2) * clean + math.sin(then / 1000 * math.pi / 2) * found
    value = own + (x - z.detach()).square().mean((1, 2))
    if bottleneck is None:
        return value
    return value + (z @ p["decode.weight"].T + p["decode.bias"] - y).square().mean((1, 2))


@pytest.mark.parametrize(("bottleneck", "seed"), [(None, 0), (5, 7)])
def test_value_and_gradients_are_the_definition(bottleneck, seed):
    s, t = checks.tokens(4, grad=True), checks.tokens(8, seed=1)
    loss = checks.build("diffkd", s, t, bottleneck=bottleneck, seed=seed)
    checks.same(loss, s, t, lambda: oracle(loss, s, t, bottleneck, seed), rtol=1e-8)


def planes_kept(steps):
    """How many tensors [b,n,e] are kept for the backward."""
    s, t = checks.tokens(4, grad=True), checks.tokens(8, seed=1)
    loss, ranks = checks.build("diffkd", s, t, steps=steps), []

    def keep(x):
        ranks.append(x.ndim)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        checks.term(loss, s, t)
    return ranks.count(3)


def test_of_a_denoising_step_only_its_input_is_kept():
    assert planes_kept(9) == planes_kept(1) + 8


def test_noise_is_of_step_and_sample_alone():
    s, t = checks.tokens(4), checks.tokens(8, seed=1)
    loss = checks.build("diffkd", s, t)
    whole = checks.term(loss, s, t).value
    assert torch.equal(checks.term(loss, s, t).value, whole)
    assert not torch.allclose(checks.term(loss, s, t, checks.batch(step=6)).value, whole)
    second = checks.batch(b=1)
    second.indices.fill_(4)
    alone = checks.term(loss, *({k: v[1:] for k, v in x.items()} for x in (s, t)), second).value
    torch.testing.assert_close(alone, whole[1:])


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="wanted steps and bottleneck of 1 or more, found 0 and None"):
        checks.build("diffkd", steps=0)
