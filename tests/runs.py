"""Training runs for tests."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.rng import Draws
from dit_shd.tasks.diffusion import Diffusion
from dit_shd.training.config import TrainConfig
from dit_shd.training.trainer import Trainer, train


def run(values, **changes):
    """Train by some config values; the config and the metrics of every step."""
    AcceleratorState._reset_state(reset_partial_state=True)
    config = make(TrainConfig, {**values, **changes})
    return config, [step.metrics for step in train(config)]


def refused(values, message):
    """A run that is refused by a line, before anything is written."""
    with pytest.raises(UserError, match=message) as error:
        run(values)
    assert "\n" not in str(error.value)
    assert not os.path.exists(values["run"])


def train_by_two(values, folder, **changes):
    """Train in each of two processes that work together."""
    AcceleratorState._reset_state()
    trainer = Trainer.from_config(make(TrainConfig, {**values, "run": str(folder), **changes}))
    assert trainer.accelerator.num_processes == 2
    list(trainer.run_steps())


def diffusion(dataset, tokens=16, **options):
    """The task of a dataset and a student of some tokens."""
    task = Diffusion(**options)
    task.dataset, task.tokens = dataset, tokens
    return task


def drawn(task, step, positions, seed=0, batch_size=8):
    """The passes of some positions of a step's batch, by name."""
    return {batch.pass_name: batch for batch in task.draw(Draws(seed, step, positions, batch_size))}


def drawn_by(trainer, step, positions):
    """The same of a run."""
    return drawn(trainer.task, step, positions, trainer.config.seed, trainer.config.batch_size)


def contents(folder):
    """Every file of a run folder by its name, but for what tells the time and the folder itself."""
    names = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    found = {name: file.read_bytes() for name, file in names.items() if name != "timing.jsonl"}
    words = (".md", ".yaml", ".json")
    return {k: v.replace(str(folder).encode(), b"RUN") if k.endswith(words) else v for k, v in found.items()}


def rows(folder, file="metrics.jsonl"):
    """A log of a run."""
    return [json.loads(line) for line in (folder / file).read_text().splitlines()]


def weights(folder, student="student"):
    """The exported student's tensors."""
    (file,) = (folder / student).glob("*.safetensors")
    return load_file(file)


def close(one, other, rel=1e-3):
    """Two logs agree in all their numbers."""
    assert [row.keys() for row in one] == [row.keys() for row in other]
    for a, b in zip(one, other):
        assert a == pytest.approx(b, rel=rel, abs=1e-6)


def same_weights(one, other, students=("student", "student_ema_0.5"), rtol=1e-3, atol=1e-5):
    """The exported students of two runs agree."""
    for student in students:
        first, second = weights(one, student), weights(other, student)
        assert first.keys() == second.keys()
        for name in first:
            torch.testing.assert_close(first[name], second[name], rtol=rtol, atol=atol)


def torchrun(script, processes, root, *arguments, seconds=300):
    """Run a script in some processes on gloo; what they wrote to stdout. The script asserts its world size itself."""
    return torchrun_and_errors(script, processes, root, *arguments, seconds=seconds)[0]


def torchrun_and_errors(script, processes, root, *arguments, seconds=300):
    """The same, and what all of them wrote to stderr.

    Each process has a stdout of its own: in one pipe their lines run into each other.
    """
    with tempfile.TemporaryDirectory() as logs:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0", "--redirects", "1", "--log_dir", logs]
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, str(script), *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert done.returncode == 0, done.stderr[:4000]
        outputs = sorted(Path(logs).rglob("stdout.log"))
        assert len(outputs) == processes
        return "".join(file.read_text() for file in outputs), done.stderr
