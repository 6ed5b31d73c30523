"""What SHD counts, and how much: drawn rows, parts of a layer, single samples, clamped pairs."""

import sys
from dataclasses import replace

import pytest
import torch
from random_captures import random_capture

from dit_shd import SHD
from dit_shd.attention.capture import Capture
from dit_shd.distillation.losses import shd
from dit_shd.squeezing.squeeze import squeeze

WEIGHTS = torch.tensor([[1.0, 0, 2.5, 1, 0, 1, 0], [0, 1, 1, 0.5, 1, 1, 1]], dtype=torch.float64)


def test_a_part_of_a_layer_counts_by_its_share():
    teacher, student = random_capture(h=4), random_capture(h=2, seed=1)
    student.query.requires_grad_()
    whole, part = (SHD()({"a": teacher}, {"a": replace(student, share=share)}) for share in (1.0, 0.25))
    torch.testing.assert_close(part, 0.25 * whole)


def test_drawn_rows_keep_their_own_weights():
    teacher, student = random_capture(h=4, bias=False), random_capture(h=2, bias=False, seed=1)
    student.query.requires_grad_()
    torch.manual_seed(5)
    rows = torch.randperm(7)[:4].sort().values
    want = SHD()({"a": teacher.select(rows)}, {"a": student.select(rows)}, row_weight=WEIGHTS[:, rows])
    torch.manual_seed(5)
    found = SHD(rows=0.5)({"a": teacher}, {"a": student}, row_weight=WEIGHTS)
    torch.testing.assert_close(found, want)


def test_a_share_of_clamped_alphas_is_logged():
    """Of many random pairs of heads some want alpha outside [0, 1]."""
    teacher, student = (random_capture(b=400, h=h, n=2, m=2, d=1, e=1, seed=1) for h in (2, 1))
    logs = SHD().divergence({"a": teacher}, {"a": student}).logs
    clamped = squeeze(teacher, 1).clamped.double().mean()
    assert 0 < clamped < 0.5 and logs["clamped"].item() == pytest.approx(clamped.item())


def test_alpha_is_logged_by_merge():
    teacher, student = random_capture(h=5), random_capture(h=2, seed=1)
    plan = [[0, 3, 1], [2, 4]]
    logs = SHD(plan=plan).divergence({"a": teacher}, {"a": student}).logs
    alpha = squeeze(teacher, 2, plan).alpha.mean(0).tolist()
    assert len({*alpha}) == 3
    want = {"": sum(alpha) / 3, "/0|3": alpha[0], "/0+3|1": alpha[1], "/2|4": alpha[2]}
    found = {name.removeprefix("alpha/a"): value.item() for name, value in logs.items() if name.startswith("alpha/a")}
    assert found == pytest.approx(want)


def test_a_bias_learns_alone():
    """Where queries and keys are frozen."""
    teacher, student = random_capture(h=4), random_capture(h=2, seed=1)
    (bias,) = student.bias.leaves
    bias.requires_grad_()
    gradients = []
    for frozen in (False, True):
        student.query.requires_grad_(not frozen)
        SHD()({"a": teacher}, {"a": student}).backward()
        gradients.append(bias.grad)
        bias.grad = None
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 1e-3


def as_given(weight, capture, *_):
    return weight.to(capture.query)


def test_row_weights_that_are_none_count_in_the_loss_where_nobody_looks(monkeypatch):
    """A GPU is not waited for from the second call on."""
    monkeypatch.setattr(shd, "rows_of", lambda given, *_: given)
    for module in ("squeeze", "divergence"):  # which look at those of a CPU
        monkeypatch.setattr(sys.modules[f"dit_shd.squeezing.{module}"], "check_row_weight", as_given)
    teacher, student, weight = random_capture(h=4), random_capture(h=2, seed=1), WEIGHTS.clone()
    weight[1, 2] = -1
    value = SHD().divergence({"a": teacher}, {"a": student}, row_weight=weight).value
    assert value.isnan().tolist() == [False, True]


def one_by_one(layers, lengths):
    """The captures of layers that take their samples one at a time, each with the rows that are no padding."""
    parts = {}
    for name, layer in layers.items():
        for i, n in enumerate(lengths):
            q, k, v = (x[i : i + 1, :, :n] for x in (layer.query, layer.key, layer.value))
            parts[name + (f"#{i + 1}" if i else "")] = Capture(
                q, k, v, layer.scale, out=layer.out, share=1 / len(lengths)
            )
    return parts


def test_the_samples_of_a_layer_have_one_plan_whatever_their_number():
    """As Mochi's layers have, which were given groups by a sample's place in the batch, and none beyond the first."""
    whole = [
        {"b.0": random_capture(b=3, h=h, bias=False, seed=h), "b.1": random_capture(b=3, h=h, bias=False)}
        for h in (4, 2)
    ]
    loss = SHD(plan="matched")
    loss.calibrate(*(one_by_one(layers, (7, 4)) for layers in whole))
    plans = loss.calibrated()["plans"]
    assert plans.keys() == whole[0].keys()
    three = [one_by_one(layers, (5, 7, 6)) for layers in whole]
    for captures in (three, whole):  # samples of one length are one call
        torch.testing.assert_close(loss(*captures), SHD(plan=plans)(*captures))
    similar = SHD(plan="matched")
    similar.calibrate(*whole)
    again = SHD(plan="matched")
    again.calibrate(*(one_by_one(layers, (7, 7, 7)) for layers in whole))
    assert again.calibrated() == similar.calibrated(), "of the maps of all samples"
    named = {f"{name}{run}": [[0, 3], [1, 2]] for name in whole[0] for run in ("", "#2", "#3")}
    torch.testing.assert_close(SHD(plan=named)(*three), SHD(plan={n: [[0, 3], [1, 2]] for n in whole[0]})(*three))
