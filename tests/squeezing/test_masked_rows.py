"""Rows of attention whose keys are all masked, by minus infinity or by a large finite number: KL, gradients and alpha.

The truth is float64 softmax of the scores as the capture's own precision has them: beside -1e9 float32 keeps no score.
"""

import dataclasses

import oracle
import pytest
import torch

from dit_shd.attention.bias import DenseBias
from dit_shd.attention.capture import Capture
from dit_shd.squeezing.divergence import attention_kl
from dit_shd.squeezing.squeeze import squeeze

B, H, G, N = 2, 4, 2, 7
LOW = torch.finfo(torch.float32).min
MASKS = {"finfo.min": LOW, "-1e9": -1e9, "-65504": -65504.0, "-inf": float("-inf")}


def hidden(value):
    """[b,1,n,n]: sample 0 is padded at its end and has row 2 masked altogether, sample 1 is masked wholly but row 0."""
    bias = torch.zeros(B, 1, N, N)
    bias[0, :, :, 5:] = value
    bias[0, :, 2] = value
    bias[1, :, 1:] = value
    return bias


def build(teacher_bias, student_bias, causal=False, dtype=torch.float32, seed=0):
    r = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=r, dtype=torch.float64).to(dtype)

    def layer(heads, width, bias, **more):
        bias = None if bias is None else DenseBias(bias.to(torch.promote_types(dtype, bias.dtype)))
        q, k, v = (draw(B, heads, N, width) for _ in range(3))
        return Capture(q, k, v, 0.5, bias, causal, **more)

    teacher, student = layer(H, 4, teacher_bias, out=draw(H, 4, 9)), layer(G, 3, student_bias)
    student.query.requires_grad_()
    student.key.requires_grad_()
    return teacher, student


def truth(capture, temperature=1.0):
    wide = torch.promote_types(capture.query.dtype, torch.float32)
    bias = None if capture.bias is None else capture.bias.leaves[0].to(wide)
    scores = oracle.scores(capture.query.to(wide), capture.key.to(wide), capture.scale, bias, capture.causal).double()
    empty = (scores == -torch.inf).all(-1, keepdim=True)  # their softmax is NaN, and so would be their gradient
    return (scores.masked_fill(empty, 0.0) / temperature).softmax(-1) * ~empty


def close(found, want, dtype, rounding=0.0):
    """rounding: of the scores, which is the relative error of the maps."""
    rtol, atol = {torch.float64: (1e-9, 1e-11), torch.float32: (1e-4, 2e-6), torch.bfloat16: (2e-2, 2e-4)}[dtype]
    torch.testing.assert_close(found.double(), want.double(), rtol=rtol, atol=atol + rounding)


def rounding_of(mask, dtype, temperature):
    """Of a score beside this mask: where it is above 1 no score is left in float64 either, and all are equal."""
    unit = torch.finfo(torch.promote_types(dtype, torch.float32)).eps * abs(MASKS[mask]) / temperature
    return unit if temperature != 1 and unit < 1 else 0.0


SIDES = {"both": (True, True), "teacher": (True, False), "student": (False, True)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 2.5, 0.4])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("mask", MASKS)
def test_kl_and_gradients_are_those_of_the_float64_oracle(mask, side, causal, temperature, dtype):
    on_teacher, on_student = SIDES[side]
    bias = hidden(MASKS[mask])
    open_rows = torch.zeros(B, 1, N, N)
    teacher, student = build(bias if on_teacher else open_rows, bias if on_student else None, causal, dtype)
    squeezed = squeeze(teacher, G)
    rounding = rounding_of(mask, dtype, temperature)
    want = oracle.divergence(truth(teacher, temperature), truth(student, temperature), squeezed.w[..., 0].double())
    if side == "student":  # log B is as large as the mask where B itself is 0: in sample 0, and with -inf everywhere
        found = attention_kl(teacher, student, squeezed, temperature)
        assert found[0] > 1e3
        close(found[1], want[1], dtype, rounding)
        return
    leaves = [student.query, student.key]
    wants = torch.autograd.grad(want.sum(), leaves)
    for backend in ("streamed",) if student.bias else ("streamed", "fused"):
        for chunk_mib in (64, 3e-4):
            found = attention_kl(teacher, student, squeezed, temperature, backend=backend, chunk_mib=chunk_mib)
            close(found, want, dtype, rounding)
            for f, w in zip(torch.autograd.grad(found.sum(), leaves), wants):
                close(f, w, dtype, rounding)


@pytest.mark.parametrize("backend", ["streamed", "fused"])
@pytest.mark.parametrize("mask", ["finfo.min", "-1e9"])
def test_a_student_masked_altogether_where_its_teacher_is_not(mask, backend):
    """Its map there is uniform, so KL is log m - entropy of the teacher; as a law, without an oracle."""
    bias = torch.zeros(B, 1, N, N)
    bias[:, :, 3] = MASKS[mask]
    teacher, student = build(None, bias)
    squeezed = squeeze(teacher, H)
    student = Capture(teacher.query, teacher.key, teacher.value, teacher.scale, DenseBias(bias))
    found = attention_kl(teacher, student, squeezed)
    a = truth(teacher)[:, :, 3]
    close(found, (torch.tensor(N).log() + (a * a.log()).sum(-1)).sum(1) / N, torch.float32)
    if backend == "fused":  # the other way round, which that backend takes: the teacher uniform, the student not
        found = attention_kl(student, teacher, squeezed, backend="fused")
        close(found, -(torch.tensor(N).log() + a.log().mean(-1)).sum(1) / N, torch.float32)


@pytest.mark.parametrize("backend", ["streamed", "fused"])
@pytest.mark.parametrize("mask", MASKS)
def test_no_kl_is_negative_and_equal_maps_have_none(mask, backend):
    teacher, student = build(hidden(MASKS[mask]), hidden(MASKS[mask]))
    close(attention_kl(teacher, teacher, squeeze(teacher, H)), torch.zeros(B), torch.float32)
    if backend == "fused":
        student = dataclasses.replace(student, bias=None)
    for temperature in (0.3, 1.0, 4.0):
        found = attention_kl(teacher, student, squeeze(teacher, G), temperature, backend=backend)
        assert (found > -1e-6).all() and torch.isfinite(found).all()


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("mask", MASKS)
def test_a_captures_map_says_the_same(mask, temperature):
    teacher, _ = build(hidden(MASKS[mask]), None)
    close(teacher.map(temperature=temperature), truth(teacher, temperature), torch.float32)


@pytest.mark.parametrize("backend", ["streamed", "fused"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_alpha_is_the_oracles(mask, causal, backend):
    teacher, _ = build(hidden(MASKS[mask]), None, causal, torch.float64)
    teacher = dataclasses.replace(teacher, bias=DenseBias(hidden(MASKS[mask]).double()))
    found = squeeze(teacher, G, backend=backend)
    plan = [[0, 1], [2, 3]]
    w, alpha = oracle.merge_progressively(truth(teacher), oracle.head_outputs(teacher.value, teacher.out), plan)
    equal = alpha.isnan()  # causal and hidden but for row 0, sample 1 has the same map in every head: 0/0
    assert equal[1].all() == (causal and mask in ("finfo.min", "-inf")) and not equal[0].any()
    torch.testing.assert_close(found.alpha, torch.where(equal, 0.5, alpha), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.w[0, ..., 0], w[0], rtol=1e-6, atol=1e-8)
