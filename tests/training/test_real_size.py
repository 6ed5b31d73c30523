"""True sizes: a step of the models that configs/ names, at 256 and 1,024 tokens. Random weights; `make test-slow`."""

import resource

import numpy as np
import pytest
import torch
from runs import run, weights

from dit_shd.core.config import make
from dit_shd.core.yaml_files import read_yaml
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses.output import Output
from dit_shd.distillation.losses.shd import SHD
from dit_shd.models.families import FAMILIES
from dit_shd.models.families.mdt import MDTv2
from dit_shd.tasks.diffusion import Diffusion, NoisyBatch
from dit_shd.training.config import TrainConfig


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
    task = Diffusion()
    distiller = Distiller(task, student, [Output(), SHD()])
    x, noise, t = torch.randn(b, 4, side, side), torch.randn(b, 4, side, side), torch.full((b,), 300)
    keep = torch.stack([torch.randperm(student.tokens)[: int(student.tokens * 0.6)].sort().values for _ in range(b)])
    x_t, labels = task.process.add_noise(x, noise, t), torch.arange(b)
    for name, kept in (("plain", None), ("masked", keep)):
        loss, logs = distiller(NoisyBatch(name, 0, labels, x, noise, x_t, t, labels, kept), teacher)
        loss.backward()
        assert torch.isfinite(loss)
        assert ("shd" in logs) == (name == "plain")
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in student.parameters())
    assert student.de_blocks[0].attn.rel_pos_bias.relative_position_bias_table.grad.abs().sum() > 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 < most_gib


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "low"), [("mdtv2_b2_to_s2_shd", "bf16"), ("mdtv2_xl2_to_s2_shd", "no"), ("dit_xl2_to_b2_shd", "no")]
)
def test_one_step_of_a_config(name, low, root, tmp_path):
    """256 tokens, the whole of train(): a teacher folder is read, a step is taken, a checkpoint is written.

    In bfloat16 as the configs have it, or in float32 where a CPU would take minutes.
    """
    values = read_yaml(root / "configs" / f"{name}.yaml")
    stand_in = make(TrainConfig, values).estimate.teacher
    assert stand_in is not None
    torch.manual_seed(0)
    teacher = FAMILIES.build(stand_in)
    for p in teacher.parameters():
        torch.nn.init.normal_(p, std=0.02)
    teacher.save_pretrained(tmp_path / "teacher")
    del teacher
    r = np.random.default_rng(0)
    np.savez(tmp_path / "latents.npz", arr_0=r.normal(size=(2, 4, 32, 32)).astype(np.float32), arr_1=[0, 999])
    changes = {"data": {"name": "npz", "path": str(tmp_path / "latents.npz")}, "teacher": str(tmp_path / "teacher")}
    changes |= {"precision": low, "teacher_precision": low, "check_teacher": "no"}
    config, (metrics,) = run(values, run=str(tmp_path / "run"), **changes, steps=1, batch_size=1)
    layers = [key for key in metrics if key.startswith("plain/shd/kl/")]
    assert len(layers) == 12 and all(np.isfinite(value) for value in metrics.values())
    assert metrics["plain/shd"] > 0 and metrics["grad_norm"] > 0
    assert all(torch.isfinite(x).all() for x in weights(config.run).values())
    peak, seconds = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        (config.run / "timing.jsonl").read_text(),
    )
    print(f"{name}: {seconds.strip()}, {peak:.1f} GiB at most in this process")
    assert peak < 16
