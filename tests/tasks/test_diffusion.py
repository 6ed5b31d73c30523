"""Keys of the task diffusion: where they stood in 0.1.0, and which of them may change while a run goes on."""

import pytest
from runs import rows, run

from dit_shd.core.config import make, resolve
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.core.yaml_files import override
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


def test_how_a_run_is_evaluated_may_change_while_it_goes_on_and_what_it_learns_may_not(values):
    """As in 0.1.0, where the evaluation was a key that may change on resume."""
    evaluation = {"count": 2, "steps": 2, "features": "digits"}
    config, _ = run(values, steps=1)
    run(values, steps=2, task={"name": "diffusion", "evaluation": evaluation}, validate_every=1)
    assert [row["step"] for row in rows(config.run)] == [1, 2]
    grids = sorted(file.name for file in (config.run / "evaluations").glob("*.png"))
    assert grids == ["step_00000001.png", "step_00000002.png"]
    with pytest.raises(UserError, match=r"another config \(task: .*May change on resume: .*task\.evaluation\."):
        run(values, steps=3, task={"name": "diffusion", "label_dropout": 0.2, "evaluation": evaluation})
