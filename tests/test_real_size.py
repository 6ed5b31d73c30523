"""True sizes: MDTv2-B/2 teaches MDTv2-S/2 for a step. Random weights; `make test-slow`."""

import resource

import pytest
import torch

from dit_shd.batch import Batch
from dit_shd.diffusion import Schedule
from dit_shd.distiller import Distiller
from dit_shd.losses.output import Output
from dit_shd.losses.shd import SHD
from dit_shd.models import MDTv2


@pytest.mark.slow
@pytest.mark.parametrize(("side", "b", "most_gib"), [(32, 2, 6.0), (64, 1, 8.0)])
def test_one_step_of_b2_to_s2(side, b, most_gib):
    """256 and 1024 tokens: a plain and a masked pass, output distillation in both, SHD on the plain one."""
    torch.manual_seed(0)
    teacher = MDTv2.from_options("B/2", sample_size=side).eval().requires_grad_(False)
    student = MDTv2.from_options("S/2", sample_size=side)
    for block in teacher.modules():  # adaLN-Zero would let attention do nothing
        if isinstance(block, torch.nn.Linear):
            torch.nn.init.normal_(block.weight, std=0.02)
    schedule = Schedule.linear()
    distiller = Distiller(student, [Output(), SHD()], schedule)
    x, noise, t = torch.randn(b, 4, side, side), torch.randn(b, 4, side, side), torch.full((b,), 300)
    keep = torch.stack([torch.randperm(student.tokens)[: int(student.tokens * 0.6)].sort().values for _ in range(b)])
    x_t, labels = schedule.add_noise(x, noise, t), torch.arange(b)
    for name, kept in (("plain", None), ("masked", keep)):
        loss, logs = distiller(Batch(x, noise, x_t, t, labels, kept, labels), name, teacher)
        loss.backward()
        assert torch.isfinite(loss)
        assert ("shd" in logs) == (name == "plain")
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in student.parameters())
    assert student.de_blocks[0].attn.rel_pos_bias.relative_position_bias_table.grad.abs().sum() > 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 < most_gib
