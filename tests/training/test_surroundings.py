"""What a caller may have set in torch around a run."""

import pytest
import torch
from runs import run

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.training.config import TrainConfig
from dit_shd.training.trainer import Trainer


def test_a_block_of_autocast_around_a_run_decides_nothing(values, tmp_path):
    """A block of enabled=False kept the first step's weights in bfloat16 for all steps; others are refused."""
    values |= {"precision": "bf16", "optimizer": {"lr": 1e-2}}
    alone = run(values, steps=5)[1]
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        assert run(values, steps=5, run=str(tmp_path / "inside"))[1] == alone
    trainer = Trainer.from_config(make(TrainConfig, {**values, "run": str(tmp_path / "begun")}))
    with torch.autocast("cpu", torch.bfloat16):
        for begin in (lambda: next(trainer.run_steps()), lambda: run(values, run=str(tmp_path / "refused"))):
            with pytest.raises(UserError, match=r"precision: the run is inside of torch\.autocast"):
                begin()


@pytest.mark.parametrize(
    ("block", "name"),
    [
        (torch.no_grad, "torch.no_grad"),
        (torch.inference_mode, "torch.inference_mode"),
        (lambda: torch.device("meta"), r"torch\.device\('meta'\)"),
    ],
)
def test_a_block_in_which_nothing_can_be_trained_is_refused(values, block, name):
    with block(), pytest.raises(UserError, match=f"train: the run is inside of {name}; leave it for the run"):
        run(values)


def test_a_default_precision_of_the_callers_is_refused(values):
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(UserError, match=r"set_default_dtype\(torch\.float64\); leave it"):
            run(values)
    finally:
        torch.set_default_dtype(torch.float32)
