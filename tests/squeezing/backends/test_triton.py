"""The Triton backend in Triton's interpreter, against the same captures in float64 through the streamed backend.

The interpreter runs programs one after another: races and speed stay unproven without a GPU (benchmarks/gpu.py).
"""

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dit_shd.attention.bias import DenseBias
from dit_shd.attention.capture import Capture
from dit_shd.attention.relative_bias import RelativeBias
from dit_shd.squeezing.divergence import attention_kl
from dit_shd.squeezing.squeeze import squeeze

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="in the interpreter; benchmarks/gpu.py runs them there"
)
WINDOW = 4


def bias_of(kind, heads, n, m, r):
    """A bias of one kind, and whether it has leaves to learn."""
    if kind == "dense":
        return DenseBias(torch.randn(1, heads, n, m, generator=r))
    if kind == "by sample":
        return DenseBias(torch.randn(2, 1, 1, m, generator=r))
    if kind in ("mask", "lowest"):
        kept = torch.rand(2, 1, n, m, generator=r) > 0.3
        kept[:, :, n // 2] = False
        hidden = float("-inf") if kind == "mask" else torch.finfo(torch.float32).min
        return DenseBias(torch.zeros(2, 1, n, m).masked_fill(~kept, hidden))
    if kind == "grid":
        return RelativeBias(torch.randn((2 * WINDOW - 1) ** 2 + 3, heads, generator=r), WINDOW)
    if kind == "tokens":
        kept = torch.stack([torch.randperm(WINDOW**2, generator=r)[:n].sort().values for _ in range(2)])
        return RelativeBias(
            torch.randn((2 * WINDOW - 1) ** 2 + 3, heads, generator=r), WINDOW, RelativeBias.codes(WINDOW)[kept]
        )
    return None


def pair(n=18, m=18, h=5, g=2, keys=None, d=4, d_student=3, bias="none", causal=False, dtype=torch.float32, seed=0):
    """Teacher and student; both have a bias of the kind (a mask is one and the same)."""
    r = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=r).to(dtype)

    t_bias = bias_of(bias, h, n, m, r)
    s_bias = t_bias if bias in ("mask", "lowest") else bias_of(bias, g, n, m, r)
    teacher = Capture(
        draw(2, h, n, d), draw(2, keys or h, m, d), draw(2, keys or h, m, d), 0.5, t_bias, causal, draw(h, d, 9).float()
    )
    student = Capture(draw(2, g, n, d_student), draw(2, g, m, d_student), draw(2, g, m, d_student), 0.7, s_bias, causal)
    return teacher, student


def learning(capture, dtype=None):
    """A copy whose query, key and bias learn, and these leaves; in another precision if one is given."""
    to = (lambda x: x.detach().clone()) if dtype is None else (lambda x: x.detach().to(dtype))
    bias = None if capture.bias is None else capture.bias.rebuilt([to(x) for x in capture.bias.leaves])
    out = None if capture.out is None else to(capture.out)
    found = dataclasses.replace(
        capture, query=to(capture.query), key=to(capture.key), value=to(capture.value), bias=bias, out=out
    )
    leaves = [found.query, found.key, *(() if bias is None else bias.leaves)]
    return found, [x.requires_grad_() for x in leaves]


def compare(
    teacher,
    student,
    measure="kl",
    temperature=1.0,
    method="pairwise",
    plan="contiguous",
    row_weight=None,
    tolerance=1e-5,
    weights=True,
):
    """Value, gradients and what the weights reach are float64's; the weights, too, where maps are not equal."""
    fine_teacher = learning(teacher, torch.float64)[0].detach()
    fine, fine_leaves = learning(student, torch.float64)
    rough, leaves = learning(student)
    options = {"plan": plan, "method": method, "row_weight": row_weight}
    exact = squeeze(fine_teacher, student.heads, **options)
    found = squeeze(teacher, student.heads, backend="triton", **options)
    if exact.residual is not None:
        torch.testing.assert_close(found.residual.double(), exact.residual, rtol=0, atol=10 * tolerance)
    if weights:
        torch.testing.assert_close(found.weight.double(), exact.weight, rtol=0, atol=max(1e-4, 5 * tolerance))
    exact = dataclasses.replace(exact, weight=found.weight.double())
    want = attention_kl(fine_teacher, fine, exact, temperature, measure, row_weight=row_weight)
    value = attention_kl(teacher, rough, found, temperature, measure, "triton", row_weight=row_weight)
    torch.testing.assert_close(value.double(), want, rtol=tolerance, atol=tolerance)
    upstream = torch.tensor([0.3, -2.0])
    wants = torch.autograd.grad(want, fine_leaves, upstream.double())
    founds = torch.autograd.grad(value, leaves, upstream)
    for one, other in zip(founds, wants):
        assert (one.double() - other).norm() <= tolerance * other.norm() + 1e-7


CASES = {
    "plain": {},
    "more keys than rows": dict(pair=dict(n=7, m=37, d=8, d_student=72)),
    "a whole group": dict(pair=dict(h=3, g=1), method="joint"),
    "groups of one, two and three": dict(pair=dict(h=6, g=3), plan=[[4], [0, 2], [1, 3, 5]]),
    "seven heads": dict(pair=dict(h=7, g=1, n=9, m=9)),
    "dense bias, tempered": dict(pair=dict(bias="dense"), temperature=1.7),
    "a bias for all rows": dict(pair=dict(bias="by sample"), measure="mse"),
    "a mask, whole rows hidden": dict(pair=dict(bias="mask"), temperature=2.0),
    "a mask of the lowest number, warmed": dict(pair=dict(bias="lowest"), temperature=0.5),
    "a mask, mse": dict(pair=dict(bias="mask"), measure="mse"),
    "a grid": dict(pair=dict(bias="grid", n=16, m=16), temperature=1.3),
    "some tokens of a grid": dict(pair=dict(bias="tokens", n=11, m=11), measure="mse"),
    "causal, rows by themselves": dict(pair=dict(causal=True, n=35, m=35), method="per_query", weights=False),
    "shared keys, cross-entropy": dict(pair=dict(h=4, keys=2), measure="cross_entropy"),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_values_and_gradients_are_those_of_float64(case):
    options = dict(CASES[case])
    teacher, student = pair(**options.pop("pair", {}))
    compare(teacher, student, **options)


def test_a_students_shared_keys_collect_the_gradient_of_all_their_heads():
    teacher, student = pair(h=4, g=2)
    compare(teacher, dataclasses.replace(student, key=student.key[:, :1], value=student.value[:, :1]))


def test_some_rows_of_causal_attention_and_what_rows_count():
    teacher, student = pair(n=20, m=20, causal=True, bias="dense")
    rows = torch.tensor([1, 4, 11, 19])
    weight = torch.tensor([[1.0, 0, 2.5, 1], [0, 1, 1, 0.5]])
    compare(teacher.select(rows), student.select(rows), row_weight=weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("measure", ["kl", "mse"])
def test_sixteen_bits_are_within_two_thousandths(dtype, measure):
    """The truth is float64 on the same rounded inputs; the gradients are rounded to 16 bits once, at the end."""
    teacher, student = pair(n=64, m=64, h=4, d=16, d_student=16, dtype=dtype)
    compare(teacher, student, measure, tolerance=4e-3 if dtype == torch.bfloat16 else 2e-3)


@settings(deadline=None, max_examples=12, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_shape(data):
    check_any(data)


@pytest.mark.slow
@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_shape_at_length(data):
    check_any(data)


def check_any(data):
    draw = data.draw
    bias = draw(st.sampled_from(["none", "dense", "by sample", "mask", "lowest", "grid", "tokens"]))
    n = WINDOW**2 if bias == "grid" else draw(st.integers(1, WINDOW**2 if bias == "tokens" else 40))
    m = n if bias in ("grid", "tokens") else draw(st.integers(1, 40))
    h = draw(st.integers(1, 6))
    teacher, student = pair(
        n=n, m=m, h=h, g=draw(st.integers(1, h)), d=draw(st.integers(1, 20)), d_student=draw(st.integers(1, 20)),
        bias=bias, causal=draw(st.booleans()) and n <= m, seed=draw(st.integers(0, 99)),
    )  # fmt: skip
    compare(
        teacher, student, draw(st.sampled_from(["kl", "cross_entropy", "mse"])), draw(st.sampled_from([0.6, 1.0, 2.0])),
        draw(st.sampled_from(["pairwise", "joint", "per_query", "constant", "hard"])), tolerance=1e-4, weights=False,
    )  # fmt: skip


def test_what_the_backend_cannot_serve_is_refused_with_the_reason(monkeypatch):
    teacher, student = pair(n=5, m=5)
    with pytest.raises(
        ValueError, match=r"backend triton cannot serve here: query, key and value are of torch.float64"
    ):
        squeeze(learning(teacher, torch.float64)[0], 2, backend="triton")
    wide = dataclasses.replace(student, query=torch.zeros(2, 2, 5, 200), key=torch.zeros(2, 2, 5, 200))
    with pytest.raises(ValueError, match="heads are wider than 128"):
        attention_kl(teacher, wide, squeeze(teacher, 2), backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="the tensors are on cpu, not on a GPU; use streamed or auto"):
        attention_kl(teacher, student, squeeze(teacher, 2), backend="triton")
