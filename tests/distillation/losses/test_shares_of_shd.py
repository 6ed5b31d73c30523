"""What SHD counts, and how much: drawn rows, parts of a layer, clamped pairs."""

from dataclasses import replace

import pytest
import torch
from random_captures import random_capture

from dit_shd import SHD
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
