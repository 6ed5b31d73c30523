"""Learning rates and optimizers."""

import pytest
import torch

from dit_shd.training.optim import OptimizerConfig, build, learning_rate


def test_warm_up_then_decay():
    cosine = OptimizerConfig(lr=2.0, warmup_steps=4, decay="cosine")
    assert [learning_rate(cosine, i, 104) for i in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert learning_rate(cosine, 4, 104) == 2.0
    assert learning_rate(cosine, 54, 104) == pytest.approx(1.0)
    assert learning_rate(cosine, 104, 104) == pytest.approx(0.0)
    linear = OptimizerConfig(lr=2.0, decay="linear")
    assert [learning_rate(linear, i, 4) for i in range(4)] == [2.0, 1.5, 1.0, 0.5]
    assert learning_rate(OptimizerConfig(lr=2.0), 99, 100) == 2.0


def test_optimizers_get_what_the_config_says():
    weights = [torch.nn.Parameter(torch.ones(2))]
    adan = build(OptimizerConfig(lr=0.1, weight_decay=0.2), weights).param_groups[0]
    assert (adan["lr"], adan["weight_decay"], tuple(adan["betas"])) == (0.1, 0.2, (0.98, 0.92, 0.99))
    adamw = build(OptimizerConfig(name="adamw", betas=[0.8, 0.9], eps=1e-3), weights)
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.param_groups[0]["betas"], adamw.param_groups[0]["eps"]) == ((0.8, 0.9), 1e-3)
