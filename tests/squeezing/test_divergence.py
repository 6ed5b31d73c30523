"""attention_kl: values and gradients against the naive float64 mathematics, and the laws of shd.md."""

import dataclasses

import oracle
import pytest
import torch

from dit_shd.attention.bias import DenseBias
from dit_shd.attention.capture import Capture
from dit_shd.attention.relative_bias import RelativeBias
from dit_shd.squeezing.divergence import attention_kl
from dit_shd.squeezing.plans import contiguous
from dit_shd.squeezing.squeeze import Squeeze, squeeze

B, H, G = 3, 5, 2


def build(n=6, m=6, causal=False, seed=0, window=None):
    """Teacher and student of other head counts and widths; the student's query, key and bias want gradients."""
    r = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=r, dtype=torch.float64)

    teacher = Capture(
        draw(B, H, n, 4),
        draw(B, H, m, 4),
        draw(B, H, m, 4),
        0.5,
        DenseBias(draw(1, H, n, m)),
        causal,
        draw(H, 4, 9),
    )
    if window:
        table = draw((2 * window - 1) ** 2 + 3, G).requires_grad_()
        bias = RelativeBias(table, window)
    else:
        bias = DenseBias(draw(1, G, n, m).requires_grad_())
    query, key = draw(B, G, n, 3).requires_grad_(), draw(B, G, m, 3).requires_grad_()
    return teacher, Capture(query, key, draw(B, G, m, 3), 0.7, bias, causal)


def dense(bias, n):
    return bias.rows(slice(0, n))


def expected(teacher, student, w, temperature, measure):
    n = teacher.shape[2]
    a = oracle.maps(teacher.query, teacher.key, teacher.scale, dense(teacher.bias, n), teacher.causal, temperature)
    b = oracle.maps(student.query, student.key, student.scale, dense(student.bias, n), student.causal, temperature)
    return oracle.divergence(a, b, w, measure)


@pytest.mark.parametrize("measure", ["kl", "mse"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("n", "m", "causal", "window"), [(6, 6, True, None), (5, 8, False, None), (9, 9, False, 3)])
@pytest.mark.parametrize("chunk_mib", [64, 3e-4])
@pytest.mark.parametrize("equal_upstream", [True, False])
def test_values_and_gradients_equal_the_oracle(measure, temperature, n, m, causal, window, chunk_mib, equal_upstream):
    teacher, student = build(n, m, causal, window=window)
    squeezed = squeeze(teacher, G)
    leaves = [student.query, student.key, student.bias.leaves[0]]
    upstream = torch.full((B,), 0.3) if equal_upstream else torch.tensor([0.1, 2.0, -1.0])
    want = expected(teacher, student, squeezed.w[..., 0], temperature, measure)
    found = attention_kl(teacher, student, squeezed, temperature, measure, chunk_mib=chunk_mib)
    torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-12)
    want_grads = torch.autograd.grad(want, leaves, upstream.double())
    found_grads = torch.autograd.grad(found, leaves, upstream.double())
    for found_grad, want_grad in zip(found_grads, want_grads):
        torch.testing.assert_close(found_grad, want_grad, rtol=1e-9, atol=1e-12)


def test_groups_of_one_size_with_others_in_between():
    teacher, student = build()
    rest = Capture(
        *(x.detach().repeat(1, 2, 1, 1)[:, :3].requires_grad_() for x in (student.query, student.key, student.value)),
        student.scale, causal=False,
    )  # fmt: skip
    squeezed = squeeze(teacher, 3, plan=[[0, 3], [1], [2, 4]])
    a = oracle.maps(teacher.query, teacher.key, teacher.scale, dense(teacher.bias, 6))
    b = oracle.maps(rest.query, rest.key, rest.scale)
    want, found = oracle.divergence(a, b, squeezed.w[..., 0]), attention_kl(teacher, rest, squeezed)
    torch.testing.assert_close(found, want)
    founds, wants = (torch.autograd.grad(x.sum(), [rest.query, rest.key]) for x in (found, want))
    torch.testing.assert_close(founds, wants)


def test_weights_per_query_row():
    teacher, student = build()
    r = torch.rand(B, H, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    group = torch.tensor([0, 0, 0, 1, 1])
    sums = torch.zeros(B, G, 6, dtype=torch.float64).index_add_(1, group, r)
    weights = Squeeze(r / sums[:, group], group, contiguous(H, G))
    found = attention_kl(teacher, student, weights, chunk_mib=3e-4)
    torch.testing.assert_close(found, expected(teacher, student, weights.w, 1.0, "kl"))


def test_float32_within_the_promised_error():
    teacher, student = build(n=64, m=64)

    def low(c):
        bias = DenseBias(c.bias.leaves[0].detach().float().requires_grad_())
        return Capture(
            c.query.detach().float().requires_grad_(),
            c.key.detach().float().requires_grad_(),
            c.value.float(),
            c.scale,
            bias,
            out=None if c.out is None else c.out.float(),
        )

    squeezed = squeeze(teacher, G)
    exact = torch.autograd.grad(attention_kl(teacher, student, squeezed).sum(), [student.query, student.key])
    coarse = low(student)
    weights = dataclasses.replace(squeezed, weight=squeezed.weight.float())
    found = torch.autograd.grad(attention_kl(low(teacher), coarse, weights).sum(), [coarse.query, coarse.key])
    for f, e in zip(found, exact):
        assert (f.double() - e).norm() / e.norm() < 1e-5


def test_zero_with_zero_gradient_when_the_maps_agree():
    teacher, _ = build()
    query, key = teacher.query.clone().requires_grad_(), teacher.key.clone().requires_grad_()
    student = Capture(query, key, teacher.value, teacher.scale, teacher.bias)
    value = attention_kl(teacher, student, squeeze(teacher, H))
    torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-14, rtol=0)
    for grad in torch.autograd.grad(value.sum(), [query, key]):
        assert grad.abs().max() < 1e-14


def test_no_gradient_reaches_the_teacher():
    teacher, student = build()
    teacher.query.requires_grad_()
    value = attention_kl(teacher, student, squeeze(teacher, G)).sum()
    value.backward()
    assert teacher.query.grad is None
    assert student.query.grad is not None
    assert student.bias.leaves[0].grad.abs().sum() > 0


def test_fully_masked_rows_count_as_zero():
    teacher, student = build()
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    mask[:, :, 2] = False
    t, s = (
        dataclasses.replace(teacher, bias=DenseBias(mask)),
        dataclasses.replace(student, bias=DenseBias(mask)),
    )
    squeezed = squeeze(t, G)
    value = attention_kl(t, s, squeezed)
    grads = torch.autograd.grad(value.sum(), [student.query, student.key])
    assert torch.isfinite(value).all()
    assert all(torch.isfinite(g).all() for g in grads)
    assert grads[0][:, :, 2].abs().max() == 0


def test_no_whole_map_is_kept_for_the_backward():
    """What autograd saves for one layer is a few n x d tensors, not n x m ones."""
    teacher, student = build(n=64, m=64)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        attention_kl(teacher, student, squeeze(teacher, G)).sum()
    without_bias = [s for s in sizes if s != B * student.bias.leaves[0].numel()]  # a bias keeps its gradient, by sample
    assert max(without_bias) <= B * G * 64 * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(temperature=0.0), "temperature above 0"),
        (dict(temperature=-1.0), "temperature above 0"),
        (dict(measure="js"), "one of kl, cross_entropy, mse"),
        (dict(chunk_mib=0), "above 0 MiB"),
    ],
)
def test_options_that_make_no_sense_are_refused(change, message):
    teacher, student = build()
    with pytest.raises(ValueError, match=message):
        attention_kl(teacher, student, squeeze(teacher, G), **change)


def test_shapes_and_weights_that_do_not_fit_are_refused():
    teacher, student = build()
    squeezed = squeeze(teacher, G)
    longer, _ = build(n=8, m=8)
    with pytest.raises(ValueError, match="equal batch and token counts"):
        attention_kl(longer, student, squeeze(longer, G))
    elsewhere = dataclasses.replace(student, query=student.query.to("meta"))
    with pytest.raises(ValueError, match="on one device, found the teacher on cpu and the student on meta"):
        attention_kl(teacher, elsewhere, squeezed)
    with pytest.raises(ValueError, match="wanted a squeeze of 5 heads into 2"):
        attention_kl(teacher, student, squeeze(teacher, 3))
    with pytest.raises(ValueError, match="sum to 1"):
        attention_kl(teacher, student, dataclasses.replace(squeezed, weight=squeezed.weight * 2))
    with pytest.raises(ValueError, match="sum to 1"):
        attention_kl(teacher, student, dataclasses.replace(squeezed, weight=squeezed.weight * float("nan")))


def test_weights_that_sum_to_one_but_for_a_hundredth_are_refused():
    teacher, student = build()
    squeezed = squeeze(teacher, G)
    with pytest.raises(ValueError, match="weights that sum to 1 in every group"):
        attention_kl(teacher, student, dataclasses.replace(squeezed, weight=squeezed.weight * 1.01))


def test_kept_maps_of_one_capture_do_not_serve_another():
    (one, student), (other, _) = build(), build(seed=1)
    squeezed = squeeze(one, G, keep_maps=True)
    want = attention_kl(other, student, dataclasses.replace(squeezed, maps={}, of=None))
    torch.testing.assert_close(attention_kl(other, student, squeezed), want)
