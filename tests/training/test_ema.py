"""The average of short runs: how much of it is what the run began with, what is said of it, and the warm-up."""

import logging
import math

import pytest
import torch
import yaml
from runs import diffusion, drawn, run, weights
from safetensors.torch import load_file
from timm.utils import ModelEmaV3
from torch import nn

from dit_shd.cli.program import main
from dit_shd.core.plugins import Plugin
from dit_shd.data.datasets import DATASETS
from dit_shd.distillation.distiller import Distiller
from dit_shd.models import export, loading
from dit_shd.models.provenance import front_matter
from dit_shd.training.config import TrainConfig
from dit_shd.training.ema import EMA, fitting_rate, share_of_first, too_slow


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5, 0.97, 0.999, 0.9999, 1.0])
def test_the_share_of_the_first_weights_is_what_an_average_keeps_of_them(rate, warmup):
    """Weights of 1 at first and 0 ever after: the average is the share."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    averages = EMA(model, [rate], warmup)
    nn.init.zeros_(model.weight)
    for step in range(300):
        want = share_of_first(rate, step, warmup)
        assert averages.tensors()["weight"].item() == pytest.approx(want, rel=1e-9, abs=1e-300)
        averages.step(model, step)


def test_a_warmed_up_average_is_the_published_one_and_ends_as_the_plain_one():
    model = nn.Linear(3, 2, bias=False).double()
    averages, want = EMA(model, [0.9], warmup=True), model.weight.detach().clone()
    for n in range(200):
        nn.init.normal_(model.weight)
        averages.step(model, n)
        decay = min(0.9, (1 + n) / (10 + n))
        want = decay * want + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(averages.tensors()["weight"], want)
    long = 10**6  # by then both have forgotten the beginning
    assert share_of_first(0.9999, long, True) < share_of_first(0.9999, long, False) < 1e-40


def test_the_statistics_of_batch_norms_are_averaged_as_by_timm():
    """An averaged student with the newest weights' means had lost half of its pictures."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4, affine=False)).double()
    averages, want = EMA(model, [0.8, 0.0]), ModelEmaV3(model, decay=0.8)
    for n in range(20):
        nn.init.normal_(model[0].weight)
        model.train()(torch.randn(5, 3, 2, 2, dtype=torch.float64) + n)
        averages.step(model, n)
        want.update(model)
    measured = [f"{i}.running_{kind}" for i in (1, 3) for kind in ("mean", "var")]
    assert averages.names == [name for name, _ in model.named_parameters()] + measured
    for name in averages.names:
        torch.testing.assert_close(averages.tensors()[name], want.module.state_dict()[name])
        torch.testing.assert_close(averages.tensors(0.0)[name], model.state_dict()[name])
    assert not torch.allclose(averages.tensors()["1.running_mean"], model[1].running_mean, rtol=0.01)
    again = EMA(model, [0.8, 0.0])
    again.load(0.8, averages.tensors())
    torch.testing.assert_close(again.tensors(), averages.tensors())


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 99, 300, 7000, 400_000])
def test_the_rate_that_is_named_fits_and_one_a_digit_slower_does_not(steps):
    rate = fitting_rate(steps)
    assert 0 <= rate**steps <= 0.01 + 1e-12
    slower = 1 - (1 - rate) / 2
    assert slower**steps > 0.01
    assert too_slow([rate], steps, False) is None


@pytest.mark.parametrize("steps", [1, 50, 299, 300, 29_956, 29_957, 400_000])
@pytest.mark.parametrize("rates", [[0.9999], [0.99, 0.9999], [0.97], [1.0]])
def test_it_is_said_exactly_when_more_than_a_twentieth_stays(steps, rates):
    said = too_slow(rates, steps, False)
    slow = [rate for rate in rates if rate**steps > 0.05]
    assert (said is not None) == bool(slow)
    for rate in slow:
        assert f"{rate**steps:.0%} of the average {rate}" in said
    assert steps < 3 or too_slow(rates, steps, True) is None


@pytest.fixture
def plain(values):
    """Plain training at the default average."""
    return {**{k: v for k, v in values.items() if k != "ema"}, "losses": [], "teacher": None, "mask_ratio": None}


def error_of(config, folder):
    """The exported student's error on noise it has not seen; 1 is what predicting nothing gives."""
    student = loading.load(folder)
    data = DATASETS.build(Plugin(config.data.name, dict(config.data.options)))
    task = diffusion(data, label_dropout=0.0, mask_ratio=None, min_snr_gamma=None)
    batch = drawn(task, 10**6, range(48), seed=5, batch_size=48)["plain"]
    with torch.no_grad():
        _, logs = Distiller(task, student.eval())(batch)
    return logs["noise"].item()


def test_a_short_run_exports_noise_unless_the_average_is_warmed_up(plain, tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="dit_shd")
    errors, said = {}, {}
    for name, more in (("default", {}), ("warm", {"ema_warmup": True}), ("named", {"ema": fitting_rate(60)})):
        caplog.clear()
        config, _ = run(plain, run=str(tmp_path / name), steps=60, checkpoint_every=60, **more)
        said[name] = [record.message for record in caplog.records if record.message.startswith("ema: ")]
        errors[name] = error_of(config, config.run)
    assert errors["default"] > 0.9
    assert errors["warm"] < 0.75 * errors["default"]
    assert errors["named"] < 0.75 * errors["default"]
    (line,) = said["default"]
    assert "after 60 steps 99% of the average 0.9999" in line
    assert f"ema={fitting_rate(60)} fits this length, or ema_warmup=true" in line
    assert said["warm"] == said["named"] == []


def test_a_resumed_run_goes_on_with_the_warm_up(plain, tmp_path):
    warm = {**plain, "ema_warmup": True}
    run(warm, run=str(tmp_path / "whole"), steps=4)
    run(warm, run=str(tmp_path / "parts"), steps=2)
    run(warm, run=str(tmp_path / "parts"), steps=4)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_card_says_which_weights_it_holds(plain, tmp_path):
    config, _ = run(plain, ema=[0.9, 0.999, 0.0], steps=2)
    assert "The weights are those of the last one. " in (config.run / "student_ema_0" / "README.md").read_text()
    for folder, rate in (("student", 0.9), ("student_ema_0.999", 0.999)):
        card = config.run / folder / "README.md"
        told = front_matter(card)["training"]
        assert told == {
            "weights": "average", "steps": 2, "ema": rate, "ema_warmup": False,
            "share_of_first_weights": pytest.approx(rate**2, rel=1e-3),
        }  # fmt: skip
        assert f"(ema {rate}), {rate**2:.2%} of which are those it began with" in card.read_text()
        assert export.exported_step(config.run / folder) == 2


def test_a_run_begun_before_there_was_a_key_goes_on(plain, tmp_path):
    config, _ = run(plain, steps=1)
    file = config.run / "config.yaml"
    told = yaml.safe_load(file.read_text())
    assert told.pop("ema_warmup") is False
    file.write_text(yaml.safe_dump(told))
    assert len(run(plain, steps=2)[1]) == 1
    file.write_text(yaml.safe_dump(told))
    with pytest.raises(ValueError, match="ema_warmup: False there, True here"):
        run(plain, steps=3, ema_warmup=True)


def test_a_dry_run_says_it_too(plain, tmp_path, capsys):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**plain, "steps": 300}))
    assert main(["train", str(file), "dry_run=true", "estimate.measure=false"]) == 0
    assert "after 300 steps 97% of the average 0.9999" in capsys.readouterr().out
    assert math.isclose(share_of_first(TrainConfig().ema, 300, False), 0.97, abs_tol=0.005)


def test_every_average_goes_on_where_it_was(values, tmp_path):
    plain = {**values, "losses": [], "teacher": None, "mask_ratio": None, "ema": [0.9, 0.5]}
    whole, _ = run(plain, run=str(tmp_path / "whole"), steps=3)
    run(plain, run=str(tmp_path / "parts"), steps=2)
    parts, _ = run(plain, run=str(tmp_path / "parts"), steps=3)
    for name in ("ema_0.9", "ema_0.5"):
        files = (c.run / "checkpoints" / "step_00000003" / f"{name}.safetensors" for c in (whole, parts))
        one, other = map(load_file, files)
        assert all(torch.equal(one[key], other[key]) for key in one), name
