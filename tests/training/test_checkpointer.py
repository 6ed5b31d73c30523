"""What is exported of a run: the averages, and what is no parameter as it is."""

from types import SimpleNamespace

import torch
from accelerate.state import AcceleratorState
from runs import run, weights
from safetensors.torch import load_file
from task_cases import COMMON, text_to_image

from dit_shd.core.config import make
from dit_shd.training.checkpointer import Checkpointer
from dit_shd.training.config import TrainConfig
from dit_shd.training.trainer import Trainer


def test_it_saves_at_every_step_that_is_kept_for_good():
    """Also where keep_every is no multiple of checkpoint_every."""
    config = SimpleNamespace(validate_every=0, checkpoint_every=4, keep_every=3, steps=10)
    saver, saved = Checkpointer(config, *[None] * 4, SimpleNamespace(pause=lambda: None), None), []
    saver.save = saved.append
    for number in range(1, 11):
        saver.after(SimpleNamespace(number=number, stopping=number == 7))
    assert saved == [3, 4, 6, 7, 8, 9, 10]


def test_a_student_is_exported_and_evaluated_with_its_own_buffers(tmp_path):
    """A table of positions that it has of a teacher of another width: a new one of its config differs."""
    values = {**COMMON, **text_to_image.values(tmp_path), "steps": 1, "losses": [{"name": "output"}]}
    values |= {"student": {"like": "teacher", "num_attention_heads": 3}, "run": str(tmp_path / "run")}
    values |= {"initialisation": {"weights": "teacher", "calibration": 4}}
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = Trainer.from_config(make(TrainConfig, values))
    list(trainer.run_steps())
    table = trainer.student.get_buffer("pos_embed.pos_embed")
    name = "pos_embed.pos_embed"
    assert torch.equal(weights(tmp_path / "run")[name], table)
    assert torch.equal(weights(tmp_path / "run", "student_ema_0.5")[name], table)
    for student in trainer.services.validation.students.values():
        assert torch.equal(student().get_buffer(name), table)


def test_each_exported_student_has_the_weights_of_its_own_average(values):
    plain = {**values, "losses": [], "teacher": None, "mask_ratio": None, "optimizer": {"name": "adamw", "lr": 1e-2}}
    config, _ = run(plain, ema=[0.9, 0.5], steps=2)
    checkpoint = config.run / "checkpoints" / "step_00000002"
    for folder, rate in (("student", 0.9), ("student_ema_0.5", 0.5)):
        exported, average = weights(config.run, folder), load_file(checkpoint / f"ema_{rate}.safetensors")
        assert all(torch.equal(exported[name], average[name]) for name in average)
