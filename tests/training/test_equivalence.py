"""One run, however it is divided: among processes, into micro batches, before and after a change of both."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from killing import line_of
from runs import drawn_by, run, weights

from dit_shd.core.config import make
from dit_shd.training.config import TrainConfig
from dit_shd.training.trainer import Trainer


@pytest.fixture
def plain(values):
    """SHD on; nothing that depends on the number of steps; steps that do not blow rounding up."""
    return {**values, "steps": 4, "optimizer": {"name": "adamw", "lr": 1e-3, "eps": 1e-3}}


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def close(one, other):
    assert [row.keys() for row in one] == [row.keys() for row in other]
    for a, b in zip(one, other):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("size", [1, 4])
def test_accumulated_micro_batches_equal_the_batch_to_the_last_weight(plain, tmp_path, size):
    whole, _ = run(plain, run=str(tmp_path / "whole"))
    parts, _ = run(plain, run=str(tmp_path / "parts"), micro_batch_size=size)
    close(rows(whole.run), rows(parts.run))
    ours, theirs = weights(whole.run), weights(parts.run)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


def test_the_number_of_processes_may_change_when_a_run_is_resumed(plain, tmp_path, root):
    """Two processes to step 2, one to step 4; as one throughout, and every sample drawn is the one of its place."""
    file, life, drawn = tmp_path / "config.yaml", tmp_path / "life.json", tmp_path / "order"
    file.write_text(yaml.safe_dump({**plain, "run": str(tmp_path / "changed")}))
    life.write_text(json.dumps({"argv": ["train", str(file), "steps=2"], "kill": None}))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    command += ["--rdzv_endpoint", "127.0.0.1:0", str(root / "tests" / "killing.py"), str(life)]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "ORDER": str(drawn)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    changed = make(TrainConfig, {**plain, "run": str(tmp_path / "changed")})
    trainer = Trainer.from_config(changed)
    assert trainer.first_step == 2
    list(trainer.run_steps())
    straight, _ = run(plain, run=str(tmp_path / "straight"))
    close(rows(straight.run), rows(changed.run))
    ours, theirs = weights(straight.run), weights(changed.run)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)
    places = [(step, range(first, first + 4)) for step in (0, 1) for first in (0, 4)]
    wanted = {line_of(step, place, drawn_by(trainer, step, place).values()) for step, place in places}
    assert wanted <= set(drawn.read_text().splitlines(keepends=True))
