"""Squeezer: memory that all layers share, and the rows that count."""

import torch
from random_captures import random_capture

from dit_shd.attention.capture import Capture
from dit_shd.attention.tiles import Buffers
from dit_shd.squeezing.divergence import attached, divergence_job, gradients_of
from dit_shd.squeezing.squeeze import squeeze
from dit_shd.squeezing.squeezer import Squeezer


def pair(n=6, m=6, h=5, seed=0):
    """A teacher of h heads and a student of 2, in float64."""
    r = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=r, dtype=torch.float64)

    teacher = Capture(draw(2, h, n, 4), draw(2, h, m, 4), draw(2, h, m, 4), 0.5, out=draw(h, 4, 9))
    return teacher, Capture(draw(2, 2, n, 3).requires_grad_(), draw(2, 2, m, 3).requires_grad_(), draw(2, 2, m, 3), 0.7)


def parts(layer, buffers):
    teacher, student = layer
    squeezed = Squeezer().squeeze("layer", teacher, 2, keep_maps=True, buffers=buffers)
    job, run = divergence_job(teacher, student, squeezed, buffers=buffers)
    value = attached(student, gradients_of(job, run))
    return squeezed.weight, value, *torch.autograd.grad(value.sum(), [student.query, student.key])


def test_layers_of_any_size_in_the_same_memory_give_what_they_give_in_fresh_memory():
    layers = [pair(n=12, m=12), pair(n=7, m=9, h=4, seed=1), pair(n=12, m=12, h=6, seed=2)]
    squeezer = Squeezer()
    shared = [parts(layer, squeezer.buffers(layer[1].query)) for layer in layers]  # none may change an earlier one's
    for layer, found in zip(layers, shared):
        torch.testing.assert_close(found, parts(layer, None), rtol=0, atol=0)


def test_memory_is_shared_only_where_it_can_serve_later():
    query, squeezer = pair()[1].query, Squeezer()
    assert squeezer.buffers(query) is squeezer.buffers(query)
    assert squeezer.buffers(query.float()).dtype == torch.float32
    with torch.inference_mode():
        assert squeezer.buffers(query) is None
    assert squeezer.buffers(query.to("meta")) is None


def test_a_teacher_of_another_precision_has_memory_of_its_own():
    teacher, student = pair()
    narrow = Buffers(torch.float32, student.query.device)
    want = Squeezer().squeeze("layer", teacher, 2).weight
    torch.testing.assert_close(Squeezer().squeeze("layer", teacher, 2, buffers=narrow).weight, want, rtol=0, atol=0)


def test_a_squeezer_squeezes_by_the_rows_that_count():
    capture = random_capture(h=5)
    rows = torch.tensor([[1.0, 0, 2.5, 1, 0, 1, 0], [0, 1, 1, 0.5, 1, 1, 1]], dtype=torch.float64)
    want = squeeze(capture, 2, row_weight=rows)
    assert torch.equal(Squeezer().squeeze("layer", capture, 2, row_weight=rows).weight, want.weight)
