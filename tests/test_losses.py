"""Distillation terms, layer maps, and the plug-in use of SHD."""

import math

import pytest
import torch

from dit_shd import SHD, capture
from dit_shd.attention import Capture
from dit_shd.batch import Batch
from dit_shd.diffusion import Schedule
from dit_shd.errors import UserError
from dit_shd.layers import layer_map
from dit_shd.losses import View
from dit_shd.losses.output import Output
from dit_shd.models import MDTv2

SMALL = dict(
    sample_size=8,
    patch_size=2,
    in_channels=1,
    num_classes=3,
    num_layers=4,
    decode_layer=2,
    attention_head_dim=4,
)


def view(student, teacher, t=(1, 500)):
    x = torch.randn(2, 1, 4, 4)
    batch = Batch(x, x, x, torch.tensor(t), torch.zeros(2, dtype=torch.long), None, torch.arange(2))
    return View(batch, Schedule.linear(), student, teacher)


def test_output_distillation_is_the_noises_mean_squared_error():
    student, teacher = torch.randn(2, 2, 4, 4, requires_grad=True), torch.randn(2, 2, 4, 4)
    term = Output().term(view(student, teacher))
    want = [(student[i, 0] - teacher[i, 0]).square().mean() for i in range(2)]
    torch.testing.assert_close(term.value, torch.stack(want))
    assert Output().term(view(teacher, teacher)).value.abs().max() == 0


def test_variance_part_is_a_kl_that_trains_the_variance():
    teacher = torch.randn(2, 2, 4, 4)
    student = teacher.clone().requires_grad_()
    loss = Output(variance=True)
    assert loss.term(view(student, teacher)).value.abs().max() < 1e-6
    moved = teacher + torch.tensor([0.0, 0.5])[None, :, None, None]
    moved.requires_grad_()
    value = loss.term(view(moved, teacher)).value.sum()
    assert value > 0
    (grad,) = torch.autograd.grad(value, moved)
    assert grad[:, 1].abs().min() > 0
    assert grad[:, 0].abs().max() < 1e-6  # equal noise: only the variance moves
    with pytest.raises(UserError, match="must predict a variance"):
        loss.term(view(student[:, :1], teacher[:, :1]))


def test_variance_part_by_hand():
    """Equal means: KL is (r - 1 - log r) / 2 nats with r the ratio of variances, over ln 2."""
    schedule, t = Schedule.linear(), 1
    noise, v_t, v_s = torch.randn(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.3), torch.full((1, 1, 4, 4), -0.2)
    low, high = schedule.posterior_log_variance[t], math.log(schedule.betas[t])
    gap = (0.65 - 0.4) * (high - low)
    want = (math.exp(gap) - 1 - gap) / 2 / math.log(2)
    x = torch.randn(1, 1, 4, 4)
    batch = Batch(x, x, x, torch.tensor([t]), torch.tensor([0]), None, torch.tensor([0]))
    term = Output(variance=True).term(View(batch, schedule, torch.cat([noise, v_s], 1), torch.cat([noise, v_t], 1)))
    assert term.logs["variance"].item() == pytest.approx(want, rel=1e-3)


def test_shd_as_a_plug_in_teaches_the_student():
    torch.manual_seed(0)
    teacher = MDTv2(**SMALL, num_attention_heads=4).eval().requires_grad_(False)
    student = MDTv2(**SMALL, num_attention_heads=2)
    for p in teacher.parameters():
        torch.nn.init.normal_(p, std=0.1)
    loss_function, optimizer = SHD(weight=1.0), torch.optim.AdamW(student.parameters(), lr=3e-3)
    history = []
    for _ in range(40):
        x, t, y = torch.randn(16, 1, 8, 8), torch.randint(0, 1000, (16,)), torch.randint(0, 3, (16,))
        with capture(teacher) as theirs, capture(student) as ours:
            teacher(x, t, y)
            student(x, t, y)
        loss = loss_function(theirs, ours)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert all(p.grad is None for p in teacher.parameters())
    assert sum(history[-5:]) / 5 < 0.2 * history[0]


def test_weight_scales_and_layers_add_up():
    torch.manual_seed(0)
    teacher, student = MDTv2(**SMALL, num_attention_heads=4), MDTv2(**SMALL, num_attention_heads=2)
    inputs = (torch.randn(2, 1, 8, 8), torch.tensor([3, 800]), torch.tensor([0, 1]))
    with capture(teacher) as t, capture(student) as s:
        teacher(*inputs)
        student(*inputs)
    whole = SHD(weight=2.0)(t, s)
    parts = [SHD(weight=2.0, layers={name: name})(t, s) for name in s]
    torch.testing.assert_close(whole, torch.stack(parts).sum())


def test_proportional_map_is_the_papers():
    teacher, student = [f"b.{i}" for i in range(48)], [f"b.{i}" for i in range(24)]
    mapped = layer_map(teacher, student, "proportional")
    assert mapped["b.3"] == "b.7"  # the 4th takes the 8th
    assert mapped["b.23"] == "b.47"


def test_sections_keep_to_themselves_and_round_up():
    def names(a, b, c):
        return [
            f"{s}.{i}.attn" for s, n in (("en_inblocks", a), ("en_outblocks", b), ("de_blocks", c)) for i in range(n)
        ]

    mapped = layer_map(names(12, 12, 4), names(3, 3, 6), "sections")
    assert [mapped[f"en_inblocks.{i}.attn"] for i in range(3)] == [f"en_inblocks.{i}.attn" for i in (3, 7, 11)]
    assert [mapped[f"de_blocks.{i}.attn"] for i in range(6)] == [f"de_blocks.{i}.attn" for i in (0, 1, 1, 2, 3, 3)]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"x": "a.0"}, "student has no layer 'x'"),
        ({"b.0": "y"}, "teacher has no layer 'y'"),
        ("sections", r"no section 'b\.\*'"),
        ("nearest", "wanted sections, proportional"),
    ],
)
def test_layer_maps_that_make_no_sense(how, message):
    with pytest.raises(UserError, match=message):
        layer_map(["a.0"], ["b.0"], how)


def test_an_explicit_plan_is_used():
    r = torch.Generator().manual_seed(0)
    t = Capture(*(torch.randn(1, 4, 5, 3, generator=r) for _ in range(3)), 1.0, out=torch.randn(4, 3, 6, generator=r))
    s = Capture(*(torch.randn(1, 2, 5, 3, generator=r) for _ in range(3)), 1.0)
    usual = SHD()({"a.0": t}, {"a.0": s})
    other = SHD(plan=[[0, 3], [1, 2]])({"a.0": t}, {"a.0": s})
    assert usual != other
    with pytest.raises(UserError, match="contiguous, matched or a list"):
        SHD(plan="neighbours")
