"""What is exported of a run: the averages, and what is no parameter as it is."""

import torch
from accelerate.state import AcceleratorState
from runs import weights
from task_cases import COMMON, text_to_image

from dit_shd.core.config import make
from dit_shd.training.config import TrainConfig
from dit_shd.training.trainer import Trainer


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
