"""SHD on captures that a script of somebody's own hands in: what cannot be compared is said."""

import copy
import logging
import pickle

import numpy as np
import oracle
import pytest
import torch

from dit_shd import SHD, Capture, capture
from dit_shd.core.errors import UserError
from dit_shd.distillation.comparison import warn_of_no_graph, warn_of_old_teacher
from dit_shd.models.families.mdt import MDTv2

N = 6


def captures(grad=True, causal=(False, False)):
    """A layer of both models: 4 heads into 2."""
    r = torch.Generator().manual_seed(0)

    def layer(heads, causal):
        q, k, v = (torch.randn(2, heads, N, 3, generator=r, dtype=torch.float64) for _ in range(3))
        return Capture(q, k, v, 1.0, causal=causal, out=torch.randn(heads, 3, 5, generator=r, dtype=torch.float64))

    teacher, student = layer(4, causal[0]), layer(2, causal[1])
    if grad:
        student.query.requires_grad_()
    return {"b.0": teacher}, {"b.0": student}


def test_rows_of_padding_take_no_part():
    """In alpha nor in the divergence, whose sum is divided by all n rows."""
    teacher, student = captures()
    rows = torch.tensor([[1.0] * 6, [1.0] * 4 + [0.0] * 2], dtype=torch.float64)
    found = SHD(weight=1.0)(teacher, student, row_weight=rows)
    (gradient,) = torch.autograd.grad(found, student["b.0"].query)
    assert not gradient[1, :, 4:].any() and gradient[1, :, :4].all()
    t, s = teacher["b.0"], student["b.0"].detach()
    a, b = (oracle.maps(x.query, x.key, 1.0) * rows[:, None, :, None] for x in (t, s))
    weights, _ = oracle.merge_progressively(a, oracle.head_outputs(t.value, t.out), [[0, 1], [2, 3]])
    merged = torch.einsum("bgh,bhnm->bgnm", weights, a)
    terms = torch.where(merged > 0, merged * (merged.clamp(min=1e-300) / b.clamp(min=1e-300)).log(), 0.0)
    torch.testing.assert_close(found.detach(), terms.sum((1, 2, 3)).mean() / N)
    with pytest.raises(UserError, match=r"row_weight: wanted \[2,6\], the rows of b\.0, found \[2, 5\]"):
        SHD()(teacher, student, row_weight=rows[:, :5])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"row_weight": [[1.0] * N] * 2}, r"row_weight: wanted a tensor \[2,6\], found list"),
        ({"row_weight": -torch.ones(2, N)}, "row_weight: wanted finite numbers of 0 or more"),
        ({"row_weight": torch.full((2, N), torch.nan)}, "row_weight: wanted finite numbers of 0 or more"),
        ({"step": torch.ones(2, N)}, "step: wanted a whole number, found Tensor"),
    ],
)
def test_what_a_script_gives_besides_is_looked_at(given, message):
    """Negative and NaN weights of rows gave a loss of 0."""
    with pytest.raises(UserError, match=message):
        SHD()(*captures(), **given)


def test_a_schedule_wants_the_step():
    teacher, student = captures()
    loss = SHD(weight={0: 0.0, 10: 1.0})
    with pytest.raises(UserError, match="the weight follows a schedule; give the step"):
        loss(teacher, student)
    for step in (10, np.int64(10), torch.tensor(10)):
        assert loss(teacher, student, step=step) == SHD(weight=1.0)(teacher, student)


@pytest.mark.parametrize("name", ["temperature", "rows", "chunk_mib", "calibration", "weight"])
def test_a_text_is_no_number(name):
    with pytest.raises(UserError, match=rf"SHD: {name}: wanted .*, found '2'$"):
        SHD(**{name: "2"})
    assert SHD(temperature=np.float32(2)).temperature == 2


def test_an_ended_schedule_costs_nothing_and_its_zero_can_be_differentiated(monkeypatch):
    loss = SHD(weight={0: 1.0, 10: 0.0})
    monkeypatch.setattr(loss, "divergence", lambda *_: pytest.fail("computed"))
    value = loss(*captures(), step=10)
    value.backward()
    assert value == 0
    assert loss({}, {}, step=10) == 0, "a script that captures nothing any more"


@pytest.mark.parametrize("grad", [True, False])
def test_a_student_without_a_graph_is_warned_of(grad, caplog):
    warn_of_no_graph.cache_clear()
    with caplog.at_level(logging.WARNING):
        SHD()(*captures(grad))
        with torch.no_grad():
            SHD()(*captures(False))
    assert ("trains nothing" in caplog.text) is not grad


def test_keys_that_the_student_alone_masks_are_refused():
    with pytest.raises(UserError, match=r"b\.0: infinite, since the teacher attends to keys"):
        SHD()(*captures(causal=(False, True)))
    assert SHD()(*captures(causal=(True, False))).isfinite()


def test_an_evaluation_after_the_forward_is_warned_of(caplog):
    """Its captures have taken the place of the student's."""
    warn_of_no_graph.cache_clear()
    torch.manual_seed(0)
    sizes = dict(sample_size=8, patch_size=4, in_channels=1, num_classes=3, attention_head_dim=4, num_layers=2)
    teacher, student = (MDTv2(**sizes, decode_layer=2, num_attention_heads=heads) for heads in (4, 2))
    inputs = torch.randn(2, 1, 8, 8), torch.tensor([3, 800]), torch.tensor([0, 1])
    with capture(teacher) as t, capture(student) as s:
        with torch.no_grad():
            teacher(*inputs)
        student(*inputs)
        kept = dict(s)
        with torch.no_grad():
            student(*inputs)
    with caplog.at_level(logging.WARNING):
        assert SHD()(t, kept).requires_grad
        assert not caplog.text
        SHD()(t, s)
    assert "was its last forward an evaluation?" in caplog.text


def test_a_teacher_that_has_not_run_again_is_told_once(caplog):
    """Its captures of the batch before have the right shapes, so that nothing else would tell."""
    warn_of_old_teacher.cache_clear()
    shd = SHD(weight=1.0)
    sizes = dict(sample_size=8, patch_size=4, in_channels=1, num_classes=3, attention_head_dim=4, num_layers=2)
    teacher, student = (MDTv2(**sizes, decode_layer=2, num_attention_heads=heads) for heads in (4, 2))
    given = torch.randn(2, 1, 8, 8), torch.tensor([3, 800]), torch.tensor([0, 1])

    def step(which):
        for model in which:
            with torch.set_grad_enabled(model is student):
                model(*given)
        shd(teacher_maps, student_maps)

    with (
        capture(teacher) as teacher_maps,
        capture(student) as student_maps,
        caplog.at_level(logging.WARNING, "dit_shd"),
    ):
        step([teacher, student])
        step([])  # the same captures again: another use of what has run
        step([teacher, student])
        copy.deepcopy(shd)(teacher_maps, student_maps)
        step([teacher])
        assert "has not run" not in caplog.text
        step([student])
        step([student])
    assert caplog.text.count("the teacher has not run since the last call of this loss") == 1
    pickle.dumps(shd)


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize("queries", [N, 2 * N])
def test_maps_over_text_and_image_are_told_of_the_image_s_block(role, queries):
    """As of SD3, whose image's queries read text and image, or FLUX, all of whose tokens are queries, and PixArt."""

    def layer(heads, joint):
        n, m, image = (queries, 2 * N, slice(N, 2 * N)) if joint else (N, N, None)
        q, k, v = (torch.randn(2, heads, tokens, 3) for tokens in (n, m, m))
        return {"b.0": Capture(q, k, v, 1.0, out=torch.randn(heads, 3, 5), image=image)}

    teacher, student = layer(4, role == "teacher"), layer(2, role == "student")
    with pytest.raises(UserError, match=rf'capture\({role}, block="image"\) has the image\'s alone$') as refused:
        SHD(layers="proportional")(teacher, student)
    assert "sections" not in str(refused.value)
    cut = [{name: each.over_image() for name, each in captures.items()} for captures in (teacher, student)]
    assert SHD()(*cut) > 0


@pytest.mark.parametrize(("samples", "tokens"), [(4, N), (2, 3)])
def test_layers_of_unlike_blocks_that_depth_alone_pairs_are_told_of_sections(samples, tokens):
    """As those over space and over time of Latte, each twice as deep in the teacher."""

    def layers(heads, depth):
        def layer(b, n):
            return Capture(*(torch.randn(b, heads, n, 3) for _ in range(3)), 1.0, out=torch.randn(heads, 3, 5))

        kinds = (("blocks", 2, N), ("temporal_blocks", samples, tokens))
        return {f"{name}.{i}.attn1": layer(b, n) for i in range(depth) for name, b, n in kinds}

    teacher, student = layers(4, 3), layers(2, 2)
    assert SHD()(teacher, student) > 0
    with pytest.raises(
        UserError, match=r'blocks\.0\.attn1 of the .*; layers="sections" pairs each with layers of its own'
    ):
        SHD(layers="proportional")(teacher, student)
    with pytest.raises(UserError) as error:
        SHD(layers={"blocks.0.attn1": "temporal_blocks.0.attn1"})(teacher, student)
    assert "sections" not in str(error.value)
