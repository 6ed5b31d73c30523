"""What accelerate's environment may change in a run, and what it may not."""

import pytest
import torch

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.tasks.diffusion import Diffusion
from dit_shd.training.accelerator import REFUSED, make_accelerator
from dit_shd.training.config import TrainConfig
from dit_shd.training.trainer import train


def made(values, **changes):
    return make_accelerator(make(TrainConfig, {**values, **changes}), Diffusion())


def test_gradients_are_not_divided_by_the_steps_of_accelerates_config(values, monkeypatch):
    """Micro batches are the run's own, and divided by it."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    weight = torch.nn.Parameter(torch.zeros(()))
    made(values).backward(3 * weight)
    assert weight.grad == 3


def test_runs_of_two_precisions_follow_each_other_in_one_process(values, tmp_path):
    """As in a notebook. One that has steps left does not take them in the other's precision."""
    values |= {"teacher": None, "losses": [], "steps": 2}
    first = train(make(TrainConfig, values))
    next(first)
    low = make(TrainConfig, {**values, "precision": "bf16", "run": str(tmp_path / "low")})
    assert len(list(train(low))) == 2
    with pytest.raises(UserError, match="a run with bf16 has begun in this process while this one, with no,"):
        next(first)


@pytest.mark.parametrize("name", REFUSED)
def test_wrappers_of_accelerate_are_refused(values, monkeypatch, name):
    """In a line, also where their package is not installed; `accelerate launch` sets some of them to no."""
    monkeypatch.setenv(name, "NO" if name.endswith("BACKEND") else "false")
    made(values)
    monkeypatch.setenv(name, "INDUCTOR" if name.endswith("BACKEND") else "true")
    with pytest.raises(UserError, match=rf"{name}=\w+: .* is the run's own"):
        made(values)
