"""Batch norms: what runs beside the steps leaves their statistics alone, and a run with them is warned of."""

import pytest
import torch
from runs import run, weights
from safetensors.torch import load_file
from torch import nn

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.models.batch_norms import evaluated_norms, kept_statistics, least_batch, remark, wanting_samples
from dit_shd.training.config import TrainConfig
from dit_shd.training.trainer import Trainer

VALUES = {
    "task": {"name": "classification", "augmentation": {"policy": None, "erasing": 0.0}},
    "data": "digits",
    "student": {"name": "timm", "model": "test_resnet", "in_chans": 1, "mean": [0.13], "std": [0.31]},
    "losses": [],
    "batch_size": 2,
    "optimizer": {"name": "adamw", "lr": 1e-3},
    "ema": 0.0,
}


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
    plain, measured = (
        run({**VALUES, "steps": 1}, run=str(tmp_path / name), gradient_norms_every=every)[0].run
        for name, every in (("plain", 0), ("measured", 1))
    )
    one, other = (load_file(folder / "checkpoints/step_00000001/distiller.safetensors") for folder in (plain, measured))
    assert all(torch.equal(x, other[name]) for name, x in one.items())
    assert one["student.network.bn1.num_batches_tracked"] == 1
    assert weights(plain).keys() == weights(measured).keys()
    assert "14 more are batch norms" in caplog.text


def test_an_averaged_student_is_exported_with_averaged_statistics(tmp_path):
    """They had been those of the newest weights, which are those of other features."""
    folder = run({**VALUES, "steps": 3}, run=str(tmp_path / "run"), ema=[0.5, 0.0])[0].run
    averaged, newest = (
        load_file(folder / "student/model.safetensors"),
        load_file(folder / "student_ema_0/model.safetensors"),
    )
    saved = load_file(folder / "checkpoints/step_00000003/ema_0.5.safetensors")
    name = "bn1.running_var"
    torch.testing.assert_close(averaged[name], saved[f"network.{name}"])
    assert not torch.allclose(averaged[name], newest[name])
    assert averaged["bn1.num_batches_tracked"] == 3


def test_a_bad_step_leaves_the_statistics_as_they_were(tmp_path):
    """Its forward has put NaN into them, whether it is left out or the run is saved and ends."""
    config = make(TrainConfig, {**VALUES, "steps": 3, "skip_bad_steps": 1, "run": str(tmp_path / "run")})
    trainer = Trainer.from_config(config)
    steps = trainer.run_steps()
    next(steps)
    before = {name: x.clone() for name, x in trainer.student.state_dict().items()}
    trainer.student.get_submodule("network.conv1").register_forward_hook(lambda *_: _[2] * float("nan"))
    assert "loss" not in next(steps).terms
    assert all(torch.equal(x, before[name]) for name, x in trainer.student.state_dict().items())
    with pytest.raises(UserError, match=r"step 3: .* saved as of step 2"):
        next(steps)
    saved = load_file(config.run / "checkpoints/step_00000002/distiller.safetensors")
    assert all(torch.equal(x, saved[f"student.{name}"]) for name, x in before.items())
    assert all(torch.isfinite(x).all() for x in weights(config.run).values())


def test_blocks_that_run_again_in_the_backward_count_a_batch_once(tmp_path):
    """Recomputed, a batch had moved the statistics twice: another student is exported, without a word."""
    plain, again = (
        run({**VALUES, "steps": 2}, run=str(tmp_path / name), gradient_checkpointing=recomputed)[0].run
        for name, recomputed in (("plain", False), ("again", True))
    )
    one, other = (load_file(folder / "checkpoints/step_00000002/distiller.safetensors") for folder in (plain, again))
    assert one["student.network.layer1.0.bn1.num_batches_tracked"] == 2
    for name, x in one.items():
        torch.testing.assert_close(x, other[name], msg=name)


def test_one_sample_of_which_a_norm_has_no_variance_is_refused_in_a_line():
    model = nn.BatchNorm1d(3)
    with (
        pytest.raises(UserError, match=r"micro_batch_size: the student's batch norms .* wanted 2 or more"),
        wanting_samples(),
    ):
        model(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="another"), wanting_samples():
        raise ValueError("another")
