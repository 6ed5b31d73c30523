"""attention_kl's backends, measures, precisions and layouts, against the naive float64 mathematics."""

import dataclasses
import logging

import oracle
import pytest
import torch
from random_captures import shared_keys

from dit_shd.attention.bias import DenseBias
from dit_shd.attention.capture import Capture
from dit_shd.squeezing import divergence
from dit_shd.squeezing.backends import autotune
from dit_shd.squeezing.divergence import attention_kl
from dit_shd.squeezing.squeeze import Squeeze, squeeze


def pair(n=6, m=6, causal=False, bias=True, d_student=3, h=5, g=2, dtype=torch.float64, seed=0):
    """A teacher, with a bias if wanted, and a student without one."""
    r = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=r, dtype=torch.float64).to(dtype)

    teacher = Capture(
        draw(2, h, n, 4), draw(2, h, m, 4), draw(2, h, m, 4), 0.5,
        DenseBias(draw(1, h, n, m)) if bias else None, causal, draw(h, 4, 9),
    )  # fmt: skip
    query, key = draw(2, g, n, d_student).requires_grad_(), draw(2, g, m, d_student).requires_grad_()
    return teacher, Capture(query, key, draw(2, g, m, d_student), 0.7, None, causal)


def expected(teacher, student, w, temperature=1.0, measure="kl"):
    bias = None if teacher.bias is None else teacher.bias.leaves[0]
    a = oracle.maps(teacher.query, teacher.key, teacher.scale, bias, teacher.causal, temperature)
    b = oracle.maps(student.query, student.key, student.scale, None, student.causal, temperature)
    return oracle.divergence(a, b, w, measure)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("d_student", [3, 4, 7])
@pytest.mark.parametrize(("n", "m", "causal", "bias"), [(6, 6, False, True), (5, 8, False, False), (7, 7, True, True)])
@pytest.mark.parametrize("method", ["pairwise", "per_query"])
def test_fused_equals_the_oracle(temperature, d_student, n, m, causal, bias, method):
    teacher, student = pair(n, m, causal, bias, d_student)
    squeezed = squeeze(teacher, 2, method=method)
    w = squeezed.w if method == "per_query" else squeezed.w[..., 0]
    upstream = torch.tensor([0.3, -2.0], dtype=torch.float64)
    want = expected(teacher, student, w, temperature)
    found = attention_kl(teacher, student, squeezed, temperature, backend="fused")
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-11)
    leaves = [student.query, student.key]
    wants, founds = (torch.autograd.grad(value, leaves, upstream) for value in (want, found))
    torch.testing.assert_close(founds, wants, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", ["streamed", "fused"])
def test_cross_entropy_is_kl_plus_the_teachers_entropy(backend):
    teacher, student = pair()
    squeezed = squeeze(teacher, 2)
    kl, cross = (attention_kl(teacher, student, squeezed, 1.5, m, backend) for m in ("kl", "cross_entropy"))
    a = oracle.maps(teacher.query, teacher.key, teacher.scale, teacher.bias.leaves[0], False, 1.5)
    mixed = torch.einsum("bgh,bhnm->bgnm", squeezed.w[..., 0], a)
    entropy = -(mixed * mixed.log()).sum((1, 3)).mean(1)
    torch.testing.assert_close(cross, kl + entropy)
    grads = [torch.autograd.grad(x.sum(), [student.query, student.key]) for x in (kl, cross)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("backend", ["streamed", "fused"])
def test_a_students_shared_keys_collect_the_gradient_of_all_their_heads(backend):
    few, written = shared_keys(h=4, keys=2, seed=8)
    teacher = shared_keys(h=8, keys=4, seed=9)[0]
    for capture in (few, written):
        capture.query.requires_grad_()
        capture.key.requires_grad_()
    squeezed = squeeze(teacher, 4)
    found = torch.autograd.grad(attention_kl(teacher, few, squeezed, backend=backend).sum(), [few.query, few.key])
    want = torch.autograd.grad(attention_kl(teacher, written, squeezed).sum(), [written.query, written.key])
    torch.testing.assert_close(found[0], want[0])
    torch.testing.assert_close(found[1], want[1].unflatten(1, (2, 2)).sum(2))


@pytest.mark.parametrize("backend", ["streamed", "fused"])
def test_bf16_inputs_are_within_two_percent(backend):
    """The truth is float64 on the same rounded inputs: what is left is the error of the arithmetic."""
    teacher, student = pair(n=64, m=64, d_student=8, bias=False, dtype=torch.bfloat16)

    def wide(c):
        return Capture(
            c.query.detach().double().requires_grad_(), c.key.detach().double().requires_grad_(), c.value.double(),
            c.scale, None, out=None if c.out is None else c.out.double(),
        )  # fmt: skip

    fine_teacher, fine = wide(teacher), wide(student)
    exact = attention_kl(fine_teacher, fine, squeeze(fine_teacher, 2))
    found = attention_kl(teacher, student, squeeze(teacher, 2, backend=backend), backend=backend)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=0.02, atol=0)
    wants = torch.autograd.grad(exact.sum(), [fine.query, fine.key])
    founds = torch.autograd.grad(found.sum(), [student.query, student.key])
    for f, w in zip(founds, wants):
        assert f.dtype == torch.bfloat16
        assert (f.double() - w).norm() / w.norm() < 0.02


@pytest.mark.parametrize(
    ("change", "measure", "reason"),
    [
        (dict(bias=DenseBias(torch.zeros(6, 6))), "kl", "additive bias"),
        (dict(causal=True), "kl", "student is causal"),
        ({}, "mse", "measure is mse"),
    ],
)
def test_where_fused_cannot_serve_it_says_so_and_auto_streams(change, measure, reason):
    teacher, student = pair()
    student = dataclasses.replace(student, **change)
    with pytest.raises(ValueError, match=reason):
        attention_kl(teacher, student, squeeze(teacher, 2), measure=measure, backend="fused")
    found = attention_kl(teacher, student, squeeze(teacher, 2), measure=measure, backend="auto")
    want = attention_kl(teacher, student, squeeze(teacher, 2), measure=measure)
    assert torch.equal(found, want)


def test_auto_measures_once_and_says_which(caplog, monkeypatch):
    monkeypatch.setattr(autotune, "_chosen", {})
    monkeypatch.setattr(divergence, "choose", autotune.timed)  # as on a GPU
    teacher, student = pair(n=33)
    with caplog.at_level(logging.INFO, "dit_shd"):
        found = attention_kl(teacher, student, squeeze(teacher, 2), backend="auto")
        attention_kl(teacher, student, squeeze(teacher, 2), backend="auto")
    assert len(caplog.records) == 1
    assert "streamed" in caplog.text
    assert "fused" in caplog.text
    torch.testing.assert_close(found, attention_kl(teacher, student, squeeze(teacher, 2)))


def test_on_a_cpu_no_stopwatch_decides(monkeypatch):
    monkeypatch.setattr(autotune, "_seconds", lambda *_: pytest.fail("timed"))
    teacher, student = pair(n=33, seed=2)
    found = attention_kl(teacher, student, squeeze(teacher, 2), backend="auto")
    assert torch.equal(found, attention_kl(teacher, student, squeeze(teacher, 2), backend="streamed"))


@pytest.mark.parametrize("causal", [False, True])
def test_some_query_rows_are_those_rows_of_the_whole(causal):
    teacher, student = pair(n=9, m=9, causal=causal)
    rows = torch.tensor([1, 4, 8])
    torch.testing.assert_close(teacher.select(rows).map(), teacher.map()[:, :, rows])
    weights = squeeze(teacher, 2, method="constant")
    each = [attention_kl(teacher.select(i[None]), student.select(i[None]), weights) for i in torch.arange(9)]
    torch.testing.assert_close(torch.stack(each).mean(0), attention_kl(teacher, student, weights))


def test_kept_maps_give_the_same_divergence():
    teacher, student = pair(n=40, m=40)
    kept = squeeze(teacher, 2, keep_maps=True)
    assert kept.maps
    for temperature in (1.0, 2.0):  # at another temperature they are of no use
        found = attention_kl(teacher, student, kept, temperature)
        torch.testing.assert_close(found, attention_kl(teacher, student, squeeze(teacher, 2), temperature))


@pytest.mark.parametrize(("measure", "backend"), [("kl", "streamed"), ("kl", "fused"), ("mse", "streamed")])
def test_rows_that_the_teacher_masks_altogether_count_as_nothing(measure, backend):
    teacher, student = pair(n=6)
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[2] = False
    masked = dataclasses.replace(teacher, bias=DenseBias(mask))
    rest = torch.tensor([0, 1, 3, 4, 5])
    weights = squeeze(teacher, 2, method="constant")
    found = attention_kl(masked, student, weights, measure=measure, backend=backend)
    want = attention_kl(masked.select(rest), student.select(rest), weights, measure=measure) * 5 / 6
    torch.testing.assert_close(found, want)
    founds, wants = (torch.autograd.grad(x.sum(), [student.query, student.key]) for x in (found, want))
    torch.testing.assert_close(founds, wants)


def test_maps_that_are_kept_serve_their_own_capture_alone():
    (teacher, student), (other, _) = pair(n=9, m=9), pair(n=9, m=9, seed=7)
    kept = squeeze(teacher, 2, keep_maps=True)
    alone = Squeeze(kept.weight, kept.group, kept.plan)
    torch.testing.assert_close(attention_kl(other, student, kept), attention_kl(other, student, alone))
    rows = torch.tensor([1, 4, 8])
    found, want = (attention_kl(teacher.select(rows), student.select(rows), weights) for weights in (kept, alone))
    torch.testing.assert_close(found, want)


def test_unfit_backends_are_refused():
    teacher, _ = pair(n=9, m=9, causal=True, bias=False)
    rows = torch.tensor([1, 4, 8])
    with pytest.raises(ValueError, match="some query rows of causal"):
        squeeze(teacher.select(rows), 2, backend="fused")
    with pytest.raises(ValueError, match="contiguous or a list"):
        squeeze(teacher, 2, plan="matched")


def test_a_backend_is_not_remembered_for_a_layer_that_it_cannot_serve(monkeypatch):
    """fused, the fastest without a bias of the student, would leave that bias out."""
    monkeypatch.setattr(autotune, "_chosen", {})
    monkeypatch.setattr(autotune, "_seconds", lambda run, _: 1.0 if run.func is autotune.RUNS["fused"] else 2.0)
    monkeypatch.setattr(divergence, "choose", autotune.timed)  # as on a GPU
    teacher, student = pair(seed=1)
    squeezed = squeeze(teacher, 2)
    attention_kl(teacher, student, squeezed, backend="auto")
    assert list(autotune._chosen.values()) == ["fused"]
    biased = dataclasses.replace(student, bias=torch.randn(2, 6, 6, dtype=torch.float64))
    found = attention_kl(teacher, biased, squeezed, backend="auto")
    torch.testing.assert_close(found, attention_kl(teacher, biased, squeezed, backend="streamed"))
