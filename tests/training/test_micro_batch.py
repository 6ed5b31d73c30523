"""micro_batch_size=auto: the largest that fits, by count and by a step that may fail; the same when a run goes on."""

import pytest
import torch
import yaml

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.profiling.memory import step_memory
from dit_shd.training import micro_batch, setup
from dit_shd.training.config import TrainConfig
from dit_shd.training.dry_run import step_shape
from dit_shd.training.micro_batch import divisors, largest
from dit_shd.training.trainer import train


@pytest.fixture
def parts(values):
    return setup.models_and_task(make(TrainConfig, {**values, "micro_batch_size": "auto"}))


def test_the_largest_that_fits_is_taken(parts, monkeypatch):
    needed = {n: step_memory(step_shape(parts.config, n), parts.student, parts.teachers).total for n in divisors(8)}
    assert list(needed) == [8, 4, 2, 1] and sorted(needed.values(), reverse=True) == list(needed.values())
    for size, total in needed.items():
        monkeypatch.setattr(micro_batch, "free_memory", lambda device, total=total: total / 0.9 + 1)
        assert largest(parts, 1) == size
    monkeypatch.setattr(micro_batch, "free_memory", lambda device: needed[8] / 0.9 + 1)
    assert largest(parts, 2) == 4, "two processes share the batch"
    monkeypatch.setattr(micro_batch, "free_memory", lambda device: 1)
    with pytest.raises(UserError, match=r"not even one image fits: .* GiB by count"):
        largest(parts, 1)


def test_a_step_that_runs_out_of_memory_leads_to_the_next_size(parts, monkeypatch):
    """On a GPU, whose count is not all: a fake of it that fails above two images."""
    tried = []

    def step(config, teachers, images, before):
        tried.append(images)
        if images > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(micro_batch, "current_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(micro_batch, "free_memory", lambda device: 2**40)
    monkeypatch.setattr(micro_batch, "peak_memory", lambda device: 0)
    monkeypatch.setattr(micro_batch, "take_a_step", step)
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None, raising=False)
    assert largest(parts, 1) == 2 and tried == [8, 4, 2]


def test_a_resumed_run_keeps_its_size(values, monkeypatch):
    config = make(TrainConfig, {**values, "micro_batch_size": "auto", "steps": 2})
    monkeypatch.setattr(micro_batch, "largest", lambda parts, processes: 4)
    assert len(list(train(config))) == 2
    assert yaml.safe_load((config.run / "config.yaml").read_text())["micro_batch_size"] == 4
    monkeypatch.setattr(micro_batch, "largest", lambda parts, processes: 1)
    assert len(list(train(make(TrainConfig, {**values, "micro_batch_size": "auto", "steps": 3})))) == 1
    assert yaml.safe_load((config.run / "config.yaml").read_text())["micro_batch_size"] == 4
