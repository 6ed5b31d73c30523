"""vitkd against its definition in float64 numpy loops: value and gradient; masks; what is refused."""

import numpy as np
import pytest
import torch

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import uniform
from dit_shd.distillation.losses import LOSSES, Forward, Layer
from dit_shd.tasks import Batch

B, SIDE, WIDTH, OTHER = 2, 3, 4, 6
N = SIDE**2


def batch(step=5):
    return Batch("plain", step, torch.tensor([11, 3]))


def build(student=WIDTH, teacher=OTHER, **options):
    torch.manual_seed(0)
    loss = LOSSES.build(Plugin("vitkd", options))
    prefix = loss.prefix_tokens
    loss.build(forward(blocks(student, 3, prefix)), forward(blocks(teacher, 3, prefix)), batch())
    loss = loss.double()
    for p in loss.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return loss


def blocks(width, depth, prefix=1, seed=0, n=N):
    r = np.random.default_rng(seed)
    return {f"blocks.{i}": r.standard_normal((B, n + prefix, width)) for i in range(depth)}


def forward(hidden, grad=False):
    layers = {k: Layer(k, hidden=torch.tensor(v, requires_grad=grad)) for k, v in hidden.items()}
    return Forward(torch.zeros(B, 3), hidden=layers)


def masked_tokens(ratio, seed):
    """The tokens with the largest draws."""
    draws = uniform(seed, "vitkd", 5, [11, 3], (N,)).numpy()
    kept = int(N * (1 - ratio))
    return [set(np.argsort(row)[kept:].tolist()) for row in draws]


def convolution(x, weight, bias):
    """3x3, zeros around: x [y,x,e] by its definition."""
    out = np.zeros((SIDE, SIDE, len(weight)))
    for i, j in np.ndindex(SIDE, SIDE):
        out[i, j] = bias
        for di, dj in np.ndindex(3, 3):
            y, z = i + di - 1, j + dj - 1
            if 0 <= y < SIDE and 0 <= z < SIDE:
                out[i, j] += weight[:, :, di, dj] @ x[y, z]
    return out


def oracle(loss, s, t, pairs, ratio=0.5, seed=0):
    """The definition [b]; s and t without their prefix."""
    p = {k: v.detach().numpy() for k, v in loss.parts.named_parameters()}

    def linear(x, name):
        return x if f"{name}.weight" not in p else x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    values = []
    for b, masked in enumerate(masked_tokens(ratio, seed)):
        mimic = sum(
            ((linear(s[own][b], f"mimic.{i}") - t[other][b]) ** 2).sum() for i, (own, other) in enumerate(pairs[:2])
        )
        own, other = pairs[-1]
        tokens = linear(s[own][b], "align")
        tokens = np.array([p["mask_token"] if i in masked else tokens[i] for i in range(N)])
        x = convolution(tokens.reshape(SIDE, SIDE, -1), p["generate.0.weight"], p["generate.0.bias"])
        x = convolution(np.maximum(x, 0), p["generate.2.weight"], p["generate.2.bias"]).reshape(N, -1)
        error = sum(((x[i] - t[other][b][i]) ** 2).sum() for i in masked)
        values.append(3e-5 * mimic + 3e-6 * error / ratio)
    return np.array(values)


def patches(hidden, prefix=1):
    return {k: v[:, prefix:] for k, v in hidden.items()}


@pytest.mark.parametrize(
    ("width", "prefix", "ratio", "seed"), [(WIDTH, 1, 0.5, 0), (OTHER, 1, 0.5, 0), (WIDTH, 2, 0.3, 7)]
)
def test_the_value_is_the_definition(width, prefix, ratio, seed):
    """Also at equal widths, which need no projectors, and beside a teacher with a distillation token."""
    loss = build(width, mask_ratio=ratio, seed=seed)
    s, t = blocks(width, 4), blocks(OTHER, 4, prefix, seed=1)
    pairs = [(f"blocks.{i}", f"blocks.{i}") for i in (0, 1, 3)]
    wanted = oracle(loss, patches(s), patches(t, prefix), pairs, ratio, seed)
    np.testing.assert_allclose(loss.term(forward(s), forward(t), batch()).value.detach(), wanted, rtol=1e-10)


def test_other_depths_are_paired_by_the_layer_map():
    loss = build()
    s, t = blocks(WIDTH, 3), blocks(OTHER, 6, seed=1)
    pairs = [("blocks.0", "blocks.1"), ("blocks.1", "blocks.3"), ("blocks.2", "blocks.5")]
    wanted = oracle(loss, patches(s), patches(t), pairs)
    np.testing.assert_allclose(loss.term(forward(s), forward(t), batch()).value.detach(), wanted, rtol=1e-10)


def test_the_gradient_reaches_the_student_and_all_that_the_loss_learns():
    """Along a random direction of everything, against differences of the oracle's values."""
    loss, s, t = build(), blocks(WIDTH, 3), blocks(OTHER, 3, seed=1)
    pairs = [(f"blocks.{i}", f"blocks.{i}") for i in range(3)]
    student = forward(s, grad=True)
    loss.term(student, forward(t), batch()).value.sum().backward()
    r = np.random.default_rng(4)
    ways = {k: r.standard_normal(v.shape) for k, v in s.items()}
    moves = [torch.from_numpy(r.standard_normal(tuple(p.shape))) for p in loss.parameters()]
    found = sum((student.hidden[k].hidden.grad.numpy() * way).sum() for k, way in ways.items())
    found += sum(float((p.grad * move).sum()) for p, move in zip(loss.parameters(), moves))
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, move in zip(loss.parameters(), moves):
                p += sign * 1e-5 * move
        moved = {k: v + sign * 1e-5 * ways[k] for k, v in s.items()}
        ends.append(oracle(loss, patches(moved), patches(t), pairs).sum())
        with torch.no_grad():
            for p, move in zip(loss.parameters(), moves):
                p -= sign * 1e-5 * move
    assert found == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)
    assert all(p.grad is not None and bool(p.grad.any()) for p in loss.parameters())


def test_what_is_masked_is_of_step_and_sample_alone():
    loss, s, t = build(), blocks(WIDTH, 3), blocks(OTHER, 3, seed=1)
    whole = loss.term(forward(s), forward(t), batch()).value
    second = [{k: v[1:] for k, v in hidden.items()} for hidden in (s, t)]
    alone = loss.term(*map(forward, second), Batch("plain", 5, torch.tensor([3]))).value
    torch.testing.assert_close(alone, whole[1:])
    assert not torch.allclose(loss.term(forward(s), forward(t), batch(step=6)).value, whole)


@pytest.mark.parametrize(
    ("options", "student", "teacher", "message"),
    [
        ({}, blocks(5, 3), blocks(OTHER, 3), r"has no maps of widths 5 and 6; .* distiller\.build"),
        ({}, blocks(WIDTH, 3, prefix=2), blocks(OTHER, 3), "wanted a square grid of tokens behind 1"),
        ({"prefix_tokens": 0}, blocks(WIDTH, 3), blocks(OTHER, 3), "wanted a square grid of tokens behind 0"),
        ({}, blocks(WIDTH, 3), blocks(OTHER, 3, n=4), r"found \[2, 10, 4\] in blocks.0 and \[2, 5, 6\] in blocks.0"),
        ({}, blocks(WIDTH, 2), blocks(OTHER, 3), "wanted a student of more than 2 blocks, found 2"),
        ({"mask_ratio": 1.0}, {}, {}, r"mask_ratio: wanted a share above 0 and below 1, found 1\.0"),
        ({"mask_ratio": 1e-9}, blocks(WIDTH, 3), blocks(OTHER, 3), r"at least one of 9 tokens, found 1e-09"),
        ({"mimicking": -1.0}, {}, {}, r"vitkd\.mimicking: wanted a number of 0 or more, found -1"),
        ({"prefix_tokens": -1}, {}, {}, r"prefix_tokens: wanted 0 or more, found -1"),
        (
            {},
            {**blocks(WIDTH, 3), **blocks(5, 1)},
            blocks(OTHER, 3),
            r"one width in each model, found \[\(4, 6\), \(5, 6\)\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options, student, teacher, message):
    with pytest.raises(UserError, match=message) as error:
        build(**options).term(forward(student), forward(teacher), batch())
    assert "\n" not in str(error.value)


def test_a_teacher_of_another_grid_is_refused():
    """Its first patches would be taken for class tokens; registers are."""
    with_registers = forward(blocks(OTHER, 3, 5))
    build(prefix_tokens=1).term(forward(blocks(WIDTH, 3)), with_registers, batch())
    with pytest.raises(UserError, match=r"losses.vitkd: wanted a square grid of tokens behind 1 .* \[2, 17, 6\]"):
        build(prefix_tokens=1).term(forward(blocks(WIDTH, 3, n=4)), forward(blocks(OTHER, 3, n=16)), batch())
