"""The Triton backend against the same captures in float64 through the streamed backend.

On a GPU if there is one, else in Triton's interpreter, which runs programs one after another: races and speed stay
unproven there (benchmarks/gpu.py).
"""

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dit_shd.attention.bias import DenseBias
from dit_shd.attention.capture import Capture
from dit_shd.attention.kernels import blocks
from dit_shd.attention.relative_bias import RelativeBias
from dit_shd.squeezing.divergence import attention_kl, divergence_job
from dit_shd.squeezing.kernels import launch
from dit_shd.squeezing.squeeze import squeeze

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WINDOW = 4


def draws(seed):
    """What draws normal numbers on the CPU, the same for every device, and moves them."""
    r = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=r).to(DEVICE)


def bias_of(kind, heads, n, m, draw):
    """A bias of one kind."""
    if kind == "dense":
        return DenseBias(draw(1, heads, n, m))
    if kind == "by sample":
        return DenseBias(draw(2, 1, 1, m))
    if kind in ("mask", "lowest"):
        kept = draw(2, 1, n, m) > -0.5
        kept[:, :, n // 2] = False
        hidden = float("-inf") if kind == "mask" else torch.finfo(torch.float32).min
        return DenseBias(draw(2, 1, n, m).mul_(0).masked_fill(~kept, hidden))
    if kind == "grid":
        return RelativeBias(draw((2 * WINDOW - 1) ** 2 + 3, heads), WINDOW)
    if kind == "tokens":
        kept = draw(2, WINDOW**2).argsort(1)[:, :n].sort(1).values
        return RelativeBias(draw((2 * WINDOW - 1) ** 2 + 3, heads), WINDOW, RelativeBias.codes(WINDOW).to(DEVICE)[kept])
    return None


def pair(
    n=18, m=18, h=5, g=2, keys=None, student_keys=None, d=4, d_student=3, bias="none", causal=False,
    dtype=torch.float32, seed=0,
):  # fmt: skip
    """Teacher and student; both have a bias of the kind (a mask is one and the same)."""
    wide = draws(seed)

    def draw(*shape):
        return wide(*shape).to(dtype)

    t_bias = bias_of(bias, h, n, m, wide)
    s_bias = t_bias if bias in ("mask", "lowest") else bias_of(bias, g, n, m, wide)
    teacher = Capture(
        draw(2, h, n, d), draw(2, keys or h, m, d), draw(2, keys or h, m, d), 0.5, t_bias, causal, draw(h, d, 9).float()
    )
    of_student = draw(2, g, n, d_student), *(draw(2, student_keys or g, m, d_student) for _ in range(2))
    return teacher, Capture(*of_student, 0.7, s_bias, causal)


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
    upstream = torch.tensor([0.3, -2.0], device=DEVICE)
    wants = torch.autograd.grad(want, fine_leaves, upstream.double())
    founds = torch.autograd.grad(value, leaves, upstream)
    for one, other in zip(founds, wants):
        rounding = 5e-5 if teacher.key.shape[2] == 1 else 1e-7  # of one key the gradient is a difference that is 0
        assert (one.double() - other).norm() <= tolerance * other.norm() + rounding


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


@pytest.mark.parametrize("case", ["groups of one, two and three", "a grid", "some tokens of a grid"])
def test_blocks_of_cards_before_hopper_give_the_same(case, monkeypatch):
    monkeypatch.setattr(blocks, "capability_here", lambda: 8)
    monkeypatch.setattr(launch, "is_unrolled", lambda *_: False)  # as of longer lines than an interpreter has time for
    test_weights_values_and_gradients_are_those_of_float64(case)


def test_a_students_shared_keys_collect_the_gradient_of_all_their_heads():
    teacher, student = pair(h=4, g=2)
    compare(teacher, dataclasses.replace(student, key=student.key[:, :1], value=student.value[:, :1]))


def test_sums_of_rows_serve_their_own_capture_alone():
    """Weights are of one capture, and may be used on another, or on some of its rows; the rows' sums may not."""
    (teacher, student), (other, _) = pair(n=9, m=9), pair(n=9, m=9, seed=7)
    weights = squeeze(teacher, 2, backend="triton")
    assert weights.row_sums is not None
    rows = torch.tensor([1, 4, 8], device=DEVICE)
    for t, s in ((other, student), (teacher.select(rows), student.select(rows))):
        found, want = (attention_kl(t, s, weights, backend=backend) for backend in ("triton", "streamed"))
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


def test_some_rows_of_causal_attention_and_what_rows_count():
    teacher, student = pair(n=20, m=20, causal=True, bias="dense")
    rows = torch.tensor([1, 4, 11, 19], device=DEVICE)
    weight = torch.tensor([[1.0, 0, 2.5, 1], [0, 1, 1, 0.5]], device=DEVICE)
    compare(teacher.select(rows), student.select(rows), row_weight=weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("measure", ["kl", "mse"])
def test_sixteen_bits_are_within_two_thousandths(dtype, measure):
    """The truth is float64 on the same rounded inputs; the gradients are rounded to 16 bits once, at the end."""
    teacher, student = pair(n=64, m=64, h=4, d=16, d_student=16, dtype=dtype)
    compare(teacher, student, measure, tolerance=4e-3 if dtype == torch.bfloat16 else 2e-3)


@pytest.mark.parametrize("bias", ["none", "dense"])
def test_a_few_rows_that_count_for_many_do_not_overflow_float16(bias):
    """A row that counts 4000 times, times the boost of 64 keys: beyond 65504."""
    teacher, student = pair(n=64, m=64, h=4, d=16, d_student=16, dtype=torch.float16, bias=bias)
    weight = torch.zeros(2, 64, device=DEVICE)
    weight[:, ::20] = 4000.0
    compare(teacher, student, row_weight=weight, tolerance=2e-3)


@settings(deadline=None, max_examples=3 if DEVICE == "cuda" else 5, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_shape(data):
    """On a GPU fewer: nearly every one compiles kernels of its own."""
    check_any(data, tokens=40, width=20, dtypes=[torch.float32])


@pytest.mark.slow
@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_shape_at_length(data):
    """Beyond one block in every direction, in every precision."""
    check_any(data, tokens=150, width=80, dtypes=[torch.float32, torch.bfloat16, torch.float16])


def check_any(data, tokens, width, dtypes):
    draw = data.draw
    bias = draw(st.sampled_from(["none", "dense", "by sample", "mask", "lowest", "grid", "tokens"]))
    n = WINDOW**2 if bias == "grid" else draw(st.integers(1, WINDOW**2 if bias == "tokens" else tokens))
    m = n if bias in ("grid", "tokens") else draw(st.integers(1, tokens))
    h, dtype = draw(st.integers(1, 7)), draw(st.sampled_from(dtypes))
    g = draw(st.integers(1, h))
    shared = [draw(st.sampled_from([k for k in range(1, heads + 1) if heads % k == 0])) for heads in (h, g)]
    of_head = draw(st.permutations([*range(g), *draw(st.lists(st.integers(0, g - 1), min_size=h - g, max_size=h - g))]))
    teacher, student = pair(
        n=n, m=m, h=h, g=g, keys=shared[0], student_keys=shared[1], bias=bias, causal=draw(st.booleans()) and n <= m,
        d=draw(st.integers(1, width)), d_student=draw(st.integers(1, width)), dtype=dtype,
        seed=draw(st.integers(0, 99)),
    )  # fmt: skip
    weight = draws(0)(2, n).abs() * (draws(1)(2, n) > -1) if draw(st.booleans()) else None
    compare(
        teacher, student, draw(st.sampled_from(["kl", "cross_entropy", "mse"])), draw(st.sampled_from([0.6, 1.0, 2.0])),
        draw(st.sampled_from(["pairwise", "joint", "per_query", "constant", "hard"])),
        plan=[[head for head in range(h) if of_head[head] == student_head] for student_head in range(g)],
        row_weight=weight, tolerance=1e-4 if dtype == torch.float32 else 1e-2, weights=False,
    )  # fmt: skip


@pytest.mark.parametrize(("bias", "refused"), [("dense", True), ("tokens", True), ("grid", False)])
def test_atomic_sums_are_refused_where_deterministic_algorithms_are_asked_for(bias, refused):
    teacher, student = pair(n=16, m=16, bias=bias)
    weights, (learner, _) = squeeze(teacher, 2, method="constant"), learning(student)
    torch.use_deterministic_algorithms(True)
    try:
        attention_kl(teacher, student, weights, backend="triton")  # a bias that does not learn is not added up
        if refused:
            with pytest.raises(ValueError, match="deterministic algorithms are asked for"):
                attention_kl(teacher, learner, weights, backend="triton")
            attention_kl(teacher, learner, weights, backend="auto").sum().backward()
        else:
            attention_kl(teacher, learner, weights, backend="triton").sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert learner.query.grad.isfinite().all()


def test_without_gradients_nothing_is_collected_of_a_bias():
    """Which would be as large as all maps, for a dense one."""
    teacher, student = pair(n=5, m=5, bias="dense")
    with torch.no_grad():
        job, run = divergence_job(teacher, learning(student)[0], squeeze(teacher, 2), backend="triton")
        assert run(job).bias is None


def test_what_the_backend_cannot_serve_is_refused_with_the_reason(monkeypatch):
    teacher, student = pair(n=5, m=5)
    with pytest.raises(
        ValueError, match=r"backend triton cannot serve here: query, key and value are of torch.float64"
    ):
        squeeze(learning(teacher, torch.float64)[0], 2, backend="triton")
    wide = dataclasses.replace(student, query=student.query.repeat(1, 1, 1, 60), key=student.key.repeat(1, 1, 1, 60))
    with pytest.raises(ValueError, match="heads are wider than 128"):
        attention_kl(teacher, wide, squeeze(teacher, 2), backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="the tensors are on cpu, not on a GPU; use streamed or fused"):
        squeeze(Capture(*(x.cpu() for x in (teacher.query, teacher.key, teacher.value)), 0.5), 2, backend="triton")
