"""The task diffusion: its keys, where they stood in 0.1.0 and which may change while a run goes on; what it draws."""

import math

import pytest
import torch
from runs import diffusion, drawn, rows, run
from small_runs import STUDENT
from small_steps import batch_of

from dit_shd.core.config import make, resolve
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import Draws
from dit_shd.core.yaml_files import override
from dit_shd.data.datasets import DATASETS
from dit_shd.diffusion.denoiser import NO_LABEL
from dit_shd.diffusion.guidance import Guidance
from dit_shd.models.families import FAMILIES
from dit_shd.tasks import Output
from dit_shd.tasks.diffusion import Diffusion
from dit_shd.training.config import TrainConfig, resolved


def task(values, *assignments):
    return resolve(resolved(make(TrainConfig, override(values, assignments))))["task"]


def test_keys_of_0_1_0_are_the_tasks():
    old = {"diffusion_steps": 100, "min_snr_gamma": None, "label_dropout": 0.2, "mask_ratio": None}
    old |= {"evaluation": {"every": 7, "count": 3}}
    new = {"name": "diffusion", "timesteps": 100, "min_snr_gamma": None, "label_dropout": 0.2, "mask_ratio": None}
    new |= {"evaluation": {"count": 3}}
    assert make(TrainConfig, old) == make(TrainConfig, {"task": new, "validate_every": 7})
    assert task(old) == task({"task": new})
    assert old.keys() == {"diffusion_steps", "min_snr_gamma", "label_dropout", "mask_ratio", "evaluation"}


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["mask_ratio=null"], "mask_ratio", None),
        (["task.mask_ratio=null"], "mask_ratio", None),
        (["task.mask_ratio=0.2", "mask_ratio=0.2", "label_dropout=0"], "mask_ratio", 0.2),
    ],
)
def test_both_places_are_heard_on_the_command_line(words, key, value):
    assert task({}, *words) == {**task({}), key: value, **({"label_dropout": 0.0} if len(words) == 3 else {})}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": {"mask_ratio": None}, "mask_ratio": 0.3}, r"task\.mask_ratio .* differs: None and 0\.3"),
        ({"task": Plugin("diffusion", {"timesteps": 50}), "diffusion_steps": 60}, r"task\.timesteps .* 50 and 60"),
        ({"validate_every": 3, "evaluation": {"every": 4}}, r"evaluation\.every .* 3 and 4"),
        ({"mask_ratio": 0.3, "evaluation": 3}, r"config\.evaluation: wanted keys and values, found 3"),
        ({"evaluation": {"evry": 3}}, r"task\.evaluation: unknown key 'evry'"),
        ({"task": {"mask_ration": 0.3}}, r"task: unknown key 'mask_ration', did you mean 'mask_ratio'\?"),
    ],
)
def test_a_key_that_is_given_twice_or_wrongly_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        resolved(make(TrainConfig, values))


@pytest.mark.parametrize("gamma", [0, -1, float("inf")])
def test_a_weighting_that_trains_nothing_is_refused(gamma):
    with pytest.raises(UserError, match=r"task\.min_snr_gamma: wanted a number above 0 .* or nothing \(null\)"):
        Diffusion(min_snr_gamma=gamma)


def test_how_a_run_is_evaluated_may_change_while_it_goes_on_and_what_it_learns_may_not(values):
    """As in 0.1.0, where the evaluation was a key that may change on resume."""
    evaluation = {"count": 2, "steps": 2, "features": "digits"}
    config, _ = run(values, steps=1)
    run(values, steps=2, task={"name": "diffusion", "evaluation": evaluation}, validate_every=1)
    assert [row["step"] for row in rows(config.run)] == [1, 2]
    grids = sorted(file.name for file in (config.run / "evaluations").glob("*.png"))
    assert grids == ["step_00000001.png", "step_00000002.png"]
    told = r"another config \(task\.label_dropout: 0\.1 there, 0\.2 here\).*May change on resume: .*task\.evaluation, "
    with pytest.raises(UserError, match=told):
        run(values, steps=3, task={"name": "diffusion", "label_dropout": 0.2, "evaluation": evaluation})


def test_what_hides_tokens_wants_as_many_in_both_models(shapes):
    """Hidden tokens of the student are others in a teacher of another patch size."""
    task = diffusion(DATASETS.build(Plugin("npz", {"path": str(shapes)})), mask_ratio=0.3)
    finer = FAMILIES.build(Plugin("mdt", {**{k: v for k, v in STUDENT.items() if k != "name"}, "patch_size": 1}))
    with pytest.raises(
        UserError, match=r"task.mask_ratio: hides the same tokens .* the teacher has 64, the student 16"
    ):
        task.check("teacher", finer)


# What is drawn


def source(shapes, batch_size=8, **changes):
    """What a run draws, by step and positions: its passes by name."""
    data = DATASETS.build(Plugin("npz", {"path": str(shapes), "flip": True}))
    task = diffusion(data, **{"label_dropout": 0.3, "mask_ratio": 0.3, **changes})
    return lambda step, positions: drawn(task, step, positions, seed=3, batch_size=batch_size)


def test_batches_are_pure_functions_of_step_and_position(shapes):
    whole = source(shapes)(5, range(8))
    assert list(whole) == ["plain", "masked"]
    parts = [source(shapes)(5, r) for r in (range(3), range(3, 8))]
    for name, batch in whole.items():
        for field in ("x_0", "noise", "x_t", "t", "labels", "indices"):
            halves = torch.cat([getattr(p[name], field) for p in parts])
            assert torch.equal(getattr(batch, field), halves), field
    assert torch.equal(whole["masked"].keep, torch.cat([p["masked"].keep for p in parts]))


def test_the_two_passes_share_images_and_time_but_not_noise(shapes):
    plain, masked = source(shapes, label_dropout=0.5)(0, range(8)).values()
    assert torch.equal(plain.x_0, masked.x_0)
    assert torch.equal(plain.t, masked.t)
    assert not torch.equal(plain.noise, masked.noise)
    assert not torch.equal(plain.labels, masked.labels)
    assert plain.keep is None
    assert masked.keep.shape[1] + 1 >= 16 * 0.5
    assert masked.keep.shape[1] <= 16 * 0.7
    assert all(len(set(row.tolist())) == len(row) for row in masked.keep)


def test_timesteps_are_uniform_over_the_schedule(shapes):
    t = source(shapes, timesteps=100, batch_size=3000)(0, range(3000))["plain"].t
    shares = (t // 10).bincount(minlength=10) / len(t)
    assert len(shares) == 10 and float((shares - 0.1).abs().max()) < 0.03, "five deviations"
    assert (int(t.min()), int(t.max())) == (0, 99)


def test_labels_are_dropped_at_the_asked_rate(shapes):
    batch = source(shapes, label_dropout=0.25, batch_size=2000)(0, range(2000))["plain"]
    assert abs((batch.labels == NO_LABEL).float().mean().item() - 0.25) < 0.04


def test_the_mask_ratio_varies_up_to_a_fifth_more(shapes):
    s = source(shapes, mask_ratio=0.3, tokens=100)
    kept = {s(step, range(1))["masked"].keep.shape[1] for step in range(60)}
    assert max(kept) <= 70
    assert min(kept) >= 50
    assert max(kept) - min(kept) > 12


def test_the_guided_target_is_along_the_schedule_that_is_trained():
    """Half of 100 steps is half of the way of the ramp."""
    x = torch.zeros(1, 1, 2, 2)
    batch = batch_of(x, t=[50], labels=[0])
    guided = Diffusion(mask_ratio=None, timesteps=100).guided(
        Output(x + 1), Output(x + 5), batch, Guidance(3.0, "power-cosine")
    )
    weight = 1 + 2 * (1 - math.cos(math.pi * 0.5**4)) / 2
    torch.testing.assert_close(guided.prediction, x + 5 + weight * (1 - 5))


def test_labels_of_no_class_are_refused_as_they_are_drawn():
    """A dataset's own label 10 of 10 classes is "no class" to the model."""
    data, learned = DATASETS.build(Plugin("digits")), Diffusion(mask_ratio=None)
    options = {**STUDENT, "num_classes": 10, "sample_size": 28}
    learned.use(data, FAMILIES.build(Plugin(options.pop("name"), options)))
    draws = Draws(0, 0, range(4), 4)
    learned.draw(draws)
    batch = data.batch
    data.batch = lambda indices, draws: {**(x := batch(indices, draws)), "labels": x["labels"] * 0 + 10}
    with pytest.raises(UserError, match="10 classes, so wanted labels from 0 to 9, found 10"):
        learned.draw(draws)
