"""Training runs for tests."""

from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from dit_shd.config import make
from dit_shd.trainer import TrainConfig, train


def run(values, **changes):
    """Train by some config values; the config and the metrics of every step."""
    AcceleratorState._reset_state(reset_partial_state=True)
    config = make(TrainConfig, {**values, **changes})
    return config, [step.metrics for step in train(config)]


def weights(folder):
    """The exported student's tensors."""
    return load_file(folder / "student" / "diffusion_pytorch_model.safetensors")
