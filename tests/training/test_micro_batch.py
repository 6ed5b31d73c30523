"""micro_batch_size=auto: the largest that fits, by count and by a step that may fail; the same when a run goes on."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
import yaml

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.distillation.distiller import Distiller
from dit_shd.profiling.memory import TEACHER, held, step_memory
from dit_shd.training import micro_batch, setup
from dit_shd.training.config import TrainConfig
from dit_shd.training.dry_run import dry_run, step_shape
from dit_shd.training.micro_batch import divisors, largest
from dit_shd.training.parts import Parts
from dit_shd.training.trainer import train


@pytest.fixture
def parts(values):
    return setup.models_and_task(make(TrainConfig, {**values, "micro_batch_size": "auto"}))


def test_the_largest_that_fits_is_taken(parts, monkeypatch):
    counted = {n: step_memory(step_shape(parts.config, n), parts.student, parts.teachers) for n in divisors(8)}
    there = counted[1].parts[TEACHER] + held(parts.student)  # which are in main memory already
    needed = {n: memory.total - there for n, memory in counted.items()}
    monkeypatch.setattr(micro_batch, "step_memory", lambda step, *models: counted[step.images])
    assert list(needed) == [8, 4, 2, 1] and sorted(needed.values(), reverse=True) == list(needed.values())
    for size, total in needed.items():
        monkeypatch.setattr(micro_batch, "free_memory", lambda device, total=total: total / 0.9 + 1)
        assert largest(parts, 1) == size
    monkeypatch.setattr(micro_batch, "free_memory", lambda device: needed[8] / 0.9 + 1)
    assert largest(parts, 2) == 4, "two processes share the batch"
    gradients = counted[4].parts["gradients"]
    monkeypatch.setattr(micro_batch, "free_memory", lambda device: (needed[4] + gradients / 2) / 0.9)
    assert (largest(parts, 1), largest(parts, 2)) == (4, 2), "which hold the gradients twice"
    monkeypatch.setattr(micro_batch, "free_memory", lambda device: 1)
    with pytest.raises(UserError, match=r"not even one image fits: .* GiB by count"):
        largest(parts, 1)


def test_adapters_alone_are_counted_as_trained(values, monkeypatch):
    """As by the dry run."""
    values |= {"lora": {"rank": 2}, "initialisation": {"weights": "teacher"}, "losses": [{"name": "output"}]}
    values |= {"student": {**values["student"], "num_attention_heads": 4}}
    parts, seen = setup.models_and_task(make(TrainConfig, {**values, "micro_batch_size": "auto"})), []
    monkeypatch.setattr(micro_batch, "step_memory", lambda *models: seen.append(step_memory(*models)) or seen[-1])
    assert largest(parts, 1) == 8
    counted = dry_run(make(TrainConfig, {**values, "estimate": {"measure": False}})).memory
    assert seen == [counted]
    assert counted.parts["gradients"] < 0.3 * counted.parts["student's weights"]
    assert not any("lora" in name for name, _ in parts.student.named_modules())


@pytest.fixture
def gpu(monkeypatch):
    """A machine whose GPU has much memory by count; its steps are taken on the CPU."""
    monkeypatch.setattr(micro_batch, "current_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(micro_batch, "free_memory", lambda device: 2**40)
    monkeypatch.setattr(micro_batch, "peak_memory", lambda device: 0)


@pytest.mark.parametrize("kind", ["meta", "cuda"])
def test_a_teacher_that_is_on_the_gpu_already_is_not_counted_again(parts, monkeypatch, kind):
    """One in fewer bits is read there; another is in main memory until the run begins. (Meta stands for the GPU.)"""
    monkeypatch.setattr(micro_batch, "current_device", lambda: torch.device(kind))
    monkeypatch.setattr(micro_batch, "_takes_a_step", lambda *_: True)
    parts = replace(parts, teachers={"teacher": parts.teachers["teacher"].to("meta")})
    counted = step_memory(step_shape(parts.config, 8), parts.student, parts.teachers)
    rest = counted.total - counted.parts[TEACHER]
    monkeypatch.setattr(micro_batch, "free_memory", lambda device: rest / 0.9 + 1)
    assert (largest(parts, 1) == 8) == (kind == "meta")


def test_a_step_that_runs_out_of_memory_leads_to_the_next_size(parts, gpu, monkeypatch):
    """Real steps, of which those of more than two images ask torch for 2^50 bytes: the error is the allocator's."""
    tried, forward, students = [], Distiller.forward, []

    def greedy(distiller, batch, teachers):
        tried.append(len(batch.indices))
        students.append(weakref.ref(distiller.student))
        torch.empty(2**50 if tried[-1] > 2 else 1, dtype=torch.uint8)
        return forward(distiller, batch, teachers)

    monkeypatch.setattr(Distiller, "forward", greedy)
    gc.disable()
    try:
        assert largest(parts, 1) == 2
        assert students and not any(student() for student in students), "their memory is the run's"
    finally:
        gc.enable()
    assert tried[:3] == [8, 4, 2] and set(tried[3:]) == {2}, "two steps, of each pass"


def test_teachers_come_back_from_the_gpu(parts, gpu, monkeypatch):
    """So that the next trial has all of its memory."""
    places = []
    monkeypatch.setattr(micro_batch, "take_a_step", lambda *_: places.append("gpu"))
    monkeypatch.setattr(micro_batch, "moved", lambda model, device: places.append((model, device)))
    largest(parts, 1)
    assert places == ["gpu", (parts.teachers["teacher"], torch.device("cpu"))]


def test_another_error_of_a_step_is_not_hidden(parts, gpu, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Distiller, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        largest(parts, 1)


def test_losses_that_read_the_data_are_counted_alone(parts, gpu, monkeypatch):
    monkeypatch.setattr(type(parts.losses[0]), "fields", frozenset({"features"}))
    monkeypatch.setattr(Distiller, "forward", lambda *_: pytest.fail("a step on noise has no such fields"))
    assert largest(parts, 1) == 8


def test_a_resumed_run_keeps_its_size(values, monkeypatch):
    config = make(TrainConfig, {**values, "micro_batch_size": "auto", "steps": 2})
    monkeypatch.setattr(micro_batch, "largest", lambda parts, processes: 4)
    assert len(list(train(config))) == 2
    assert yaml.safe_load((config.run / "config.yaml").read_text())["micro_batch_size"] == 4
    with monkeypatch.context() as patch:  # 3 and 16 do not divide the batch of 8 and are refused later
        for processes, size in ((1, 4), (2, 4), (4, 2), (8, 1), (3, 2), (16, 4)):
            patch.setenv("WORLD_SIZE", str(processes))
            parts = Parts(replace(config, micro_batch_size="auto"), *[None] * 5)
            assert micro_batch.with_micro_batch(parts).config.micro_batch_size == size
    monkeypatch.setattr(micro_batch, "largest", lambda parts, processes: 1)
    assert len(list(train(make(TrainConfig, {**values, "micro_batch_size": "auto", "steps": 3})))) == 1
    assert yaml.safe_load((config.run / "config.yaml").read_text())["micro_batch_size"] == 4


def test_models_that_are_divided_are_not_tried_whole(parts):
    with pytest.raises(UserError, match=r"micro_batch_size: auto tries whole models .* give a number"):
        largest(replace(parts, config=replace(parts.config, sharding="fsdp2")), 2)
