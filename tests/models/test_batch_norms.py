"""Batch norms: what runs beside the steps leaves their statistics alone, and a run with them is warned of."""

import pytest
import torch
from runs import run, weights
from safetensors.torch import load_file
from torch import nn

from dit_shd.models.batch_norms import evaluated_norms, kept_statistics, least_batch, remark


def test_statistics_are_kept_in_the_block():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with kept_statistics(model):
        model(torch.randn(5, 3))
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    model(torch.randn(5, 3))
    assert model[1].num_batches_tracked == 1 and not torch.equal(model[1].running_mean, before["1.running_mean"])
    assert remark(nn.Linear(3, 3)) is None and "student: 1 " in remark(model)


def test_a_single_sample_runs_by_the_statistics():
    model = nn.BatchNorm1d(3)
    with evaluated_norms(model):
        assert torch.equal(model(torch.zeros(1, 3)), torch.zeros(1, 3)) and not model.training
    assert model.training and model.num_batches_tracked == 0
    assert (least_batch(model), least_batch(nn.Linear(3, 3))) == (2, 1)
    with pytest.raises(ValueError, match="more than 1 value"):
        model(torch.zeros(1, 3))


def test_what_is_measured_beside_the_steps_does_not_change_a_run(tmp_path, caplog):
    """The first sample, the norms of gradients: a student of classification with batch norms."""
    values = {
        "task": {"name": "classification", "augmentation": {"policy": None, "erasing": 0.0}},
        "data": "digits",
        "student": {"name": "timm", "model": "test_resnet", "in_chans": 1, "mean": [0.13], "std": [0.31]},
        "losses": [],
        "steps": 1,
        "batch_size": 2,
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "ema": 0.0,
    }
    plain, measured = (
        run(values, run=str(tmp_path / name), gradient_norms_every=every)[0].run
        for name, every in (("plain", 0), ("measured", 1))
    )
    one, other = (load_file(folder / "checkpoints/step_00000001/distiller.safetensors") for folder in (plain, measured))
    assert all(torch.equal(x, other[name]) for name, x in one.items())
    assert one["student.network.bn1.num_batches_tracked"] == 1
    assert weights(plain).keys() == weights(measured).keys()
    assert "14 more are batch norms" in caplog.text
