"""Weights by step, and by shares of a run."""

from dataclasses import replace

import pytest
import torch
import torch._dynamo
from runs import run
from small_steps import SMALL, batch_of

from dit_shd.core.config import make, resolve
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import LOSSES
from dit_shd.distillation.losses.shd import SHD
from dit_shd.distillation.schedule import at_step, end_of, ended, schedule, shares_as_steps
from dit_shd.models.families.mdt import MDTv2
from dit_shd.tasks.diffusion import Diffusion
from dit_shd.training.config import TrainConfig, resolved


def test_a_weight_is_linear_between_its_steps_and_constant_outside():
    points = schedule({600: 0.3, 0: 0.3, 900: 0.0}, "shd")
    assert list(points) == [0, 600, 900]
    assert [at_step(points, step) for step in (0, 600, 750, 900, 5000)] == pytest.approx([0.3, 0.3, 0.15, 0.0, 0.0])


def test_a_schedule_has_ended_where_it_stays_at_zero():
    falling, paused = {0: 1.0, 10: 0.0}, {0: 1.0, 10: 0.0, 20: 0.0, 30: 1.0}
    assert [ended(falling, step) for step in (0, 5, 9, 10, 11)] == [False, False, False, True, True]
    assert not any(ended(paused, step) for step in (0, 10, 15, 20, 40))
    assert not ended({0: 0.0}, 5), "it never began"
    assert [end_of(points) for points in (falling, paused, {0: 1.0})] == [10, None, None]


@pytest.mark.parametrize(
    "weight", [-1.0, True, "1", float("inf"), float("nan"), {True: 1.0}, {-1: 1.0}, {0.5: 1.0}, {}]
)
def test_what_is_no_weight_is_refused(weight):
    with pytest.raises(UserError, match="shd: weight: wanted"):
        schedule(weight, "shd")


def test_shares_of_a_run_are_steps():
    assert shares_as_steps({"0%": 0.3, "20%": 0.3, "30 %": 0}, 3000, "x") == {0: 0.3, 600: 0.3, 900: 0}
    assert shares_as_steps({0: 1, "12.5%": 2, "100%": 0}, 1000, "x") == {0: 1, 125: 2, 1000: 0}
    assert shares_as_steps({"29%": 1}, 100, "x") == {29: 1}, "0.29 * 100 is below 29"
    for other in (0.3, {0: 1.0}, "20%", None, {"coarse": 1}):
        assert shares_as_steps(other, 3000, "x") is other


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ({0: 1, "120%": 0}, r"losses\.0\.weight: wanted shares of the run up to 100%, found 120%"),
        ({0: 1, "0%": 0}, r"losses\.0\.weight: step 0 of 3000 stands there twice \(0%\)"),
        ({0: 1, "half%": 0}, r"losses\.0.*half%"),
        ({0: 1, "-5%": 0}, r"losses\.0.*-5%"),
    ],
)
def test_what_is_no_share_is_refused(weight, message):
    with pytest.raises(UserError, match=message) as error:
        resolved(make(TrainConfig, {"steps": 3000, "losses": [{"name": "output", "weight": weight}]}))
    assert "\n" not in str(error.value)


def test_a_config_by_shares_is_the_one_by_steps_and_is_saved_so():
    def saved(steps, loss_weight, base):
        losses = [{"name": "output"}, {"name": "shd", "weight": loss_weight}]
        return resolve(resolved(make(TrainConfig, {"steps": steps, "losses": losses, "base_weight": base})))

    by_share = saved("3000", {0: 0.3, "20%": 0.3, "30%": 0}, {"0%": 1, "50%": 0.5})
    assert by_share == saved(3000, {0: 0.3, 600: 0.3, 900: 0}, {0: 1, 1500: 0.5})
    assert by_share["losses"][1]["weight"] == {0: 0.3, 600: 0.3, 900: 0.0}
    assert make(TrainConfig, by_share) == make(TrainConfig, by_share | {})
    assert make(TrainConfig, {"losses": [{"name": "output", "weight": {"25%": 1}}]}).losses[0].options["weight"] == {
        100_000: 1
    }


def test_the_weight_of_the_tasks_terms_is_that_of_the_step():
    student = MDTv2(**SMALL, num_attention_heads=2)
    distiller = Distiller(Diffusion(), student, base_weight={0: 1.0, 8: 0.0})
    batch = batch_of(torch.randn(2, 1, 8, 8), [3, 800], [0, 1])
    for step, factor in ((0, 1.0), (2, 0.75), (8, 0.0)):
        total, logs = distiller(replace(batch, step=step))
        torch.testing.assert_close(total.detach(), factor * (logs["noise"] + logs["variational"]))


def test_a_weight_goes_along_lines_between_its_steps():
    loss = SHD(weight={10: 1.0, 0: 0.0, 20: 3.0})
    assert [loss.weight_at(step) for step in (0, 5, 10, 15, 20, 99)] == [0, 0.5, 1, 2, 3, 3]
    assert SHD(weight=2.0).weight_at(10**9) == 2.0
    read = make(TrainConfig, {"losses": [{"name": "shd", "weight": {0: "1e-4", "1e3": 2}}]})  # as YAML reads it
    assert resolved(read).losses[0].options["weight"] == {0: 1e-4, 1000: 2.0}


def test_the_total_follows_the_schedule(values):
    values["losses"] = [{"name": "shd", "weight": {0: 0.0, 2: 4.0}}]
    _, metrics = run({**values, "mask_ratio": None}, steps=3)
    for step, (row, weight) in enumerate(zip(metrics, (0.0, 2.0, 4.0))):
        rest = row["plain/noise"] + row["plain/variational"]
        assert row["loss"] == pytest.approx(rest + weight * row["plain/shd"], rel=1e-5), step


def test_plug_ins_resolve_schedules(values):
    filled = LOSSES.filled(Plugin("shd", {"weight": {0: 0.0, 5: 1.0}}))
    assert filled.options["weight"] == {0: 0.0, 5: 1.0}
