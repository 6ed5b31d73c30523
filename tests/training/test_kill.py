"""kill -9 at any moment loses nothing: after it the same command ends in the same files, bit for bit.

The short form runs with all tests; `make test-kill` runs the long one too, and the kills of sampling and encoding.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from runs import contents

from dit_shd.models.families.mdt import MDTv2

MODEL = {
    "sample_size": 28, "patch_size": 7, "in_channels": 1, "num_classes": 10, "num_layers": 4, "decode_layer": 2,
    "num_attention_heads": 2, "attention_head_dim": 4,
}  # fmt: skip
STEPS, EVERY, EVALUATE = 8, 2, 4


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Everything that a run can write: checkpoints, exports of two averages, evaluations with figures."""
    folder = tmp_path_factory.mktemp("kill")
    torch.manual_seed(0)
    MDTv2(**{**MODEL, "num_attention_heads": 4}).save_pretrained(folder / "teacher")
    images = np.random.default_rng(0).integers(0, 256, (12, 28, 28, 1), dtype=np.uint8)
    np.savez(folder / "few.npz", images, np.arange(12) % 10)
    evaluation = {"every": EVALUATE, "count": 6, "steps": 3, "reference": str(folder / "few.npz"), "features": "digits"}
    evaluation |= {"sample": {"batch_size": 2}, "evaluate": {"metrics": ["frechet"], "page": False}}
    values = {
        "data": {"name": "npz", "path": str(folder / "few.npz")},
        "student": {"name": "mdt", **MODEL},
        "teacher": str(folder / "teacher"),
        "check_teacher": "no",
        "losses": [{"name": "output", "variance": True}, {"name": "shd", "plan": "matched", "rows": 0.5}],
        "batch_size": 4,
        "steps": STEPS,
        "log_every": 1,
        "checkpoint_every": EVERY,
        "keep_every": 4,
        "keep_checkpoints": 1,
        "ema": [0.9, 0.99],
        "optimizer": {"lr": 1e-3, "warmup_steps": 2, "decay": "cosine"},
        "evaluation": evaluation,
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def environment(root, **more):
    own = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own, **{k: str(v) for k, v in more.items()}}


def forked(lives, root, tmp_path, **more):
    """Live through `lives` one after the other, each a fork; their exit codes."""
    file = tmp_path / "lives.json"
    file.write_text(json.dumps(lives))
    command = [sys.executable, str(root / "tests" / "killing.py"), str(file)]
    done = subprocess.run(command, env=environment(root, **more), capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout), done.stderr


def train(config, run, **keys):
    return ["train", str(config), f"run={run}", *(f"{k}={v}" for k, v in {"steps": STEPS, **keys}.items())]


def order(file):
    """What was drawn, once: what was drawn again after a kill was the same."""
    lines = set(file.read_text().splitlines())
    assert len({line.rsplit(" ", 1)[0] for line in lines}) == len(lines), "one place, two draws"
    return lines


@pytest.fixture(scope="module")
def straight(config, root, tmp_path_factory):
    """The run that nobody disturbs, and what it drew; one that was killed in its third step, beside it; and what
    durable acts that one does until it has saved and evaluated twice."""
    folder = tmp_path_factory.mktemp("straight")
    run, begun, rest = folder / "run", folder / "begun", folder / "rest"
    lives = [
        {"argv": train(config, run), "kill": None},
        {"argv": train(config, begun), "kill": {"phase": "step", "call": 3, "delay": 0}},
        {"argv": train(config, rest), "copy": [str(begun), str(rest)], "kill": None, "events": str(folder / "events")},
    ]
    codes, said = forked(lives, root, folder, ORDER=folder / "order")
    assert codes == [0, -9, 0], said
    events = json.loads((folder / "events").read_text())
    return run, order(folder / "order"), next(i for i, what in enumerate(events) if "step_00000008" in what)


def same(run, straight, drawn):
    ours, theirs = contents(run), contents(straight[0])
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert {"metrics.jsonl", "evaluations.jsonl", f"checkpoints/step_{STEPS:08d}/optimizer.safetensors"} < ours.keys()
    assert order(drawn) <= straight[1]


def moments(count, seed):
    """Kills during steps, saves, exports, evaluations, samplings and resumings; each life goes a little further.

    An evaluation may be a run's last act, over before a delay is: there the kill comes as it begins.
    """
    draw = random.Random(seed)
    phases = ["save", "step", "evaluation", "sample", "export", "step", "publish", "resume"]
    for i in range(count):
        name = phases[i % len(phases)]
        call = draw.choice([1, 2, 3]) if name == "step" else 1
        delay = draw.uniform(0, 0.03)
        yield {"phase": name, "call": call, "delay": 0 if name == "evaluation" else delay}


@pytest.mark.slow
@pytest.mark.parametrize(("count", "steps"), [(3, STEPS), (20, 48)])
def test_killed_at_moments_and_resumed_a_run_ends_as_if_never(config, straight, root, tmp_path, count, steps):
    run, whole = tmp_path / "run", tmp_path / "whole"
    lives = [{"argv": train(config, run, steps=steps), "kill": kill} for kill in [*moments(count, seed=count), None]]
    codes, said = forked(lives, root, tmp_path, ORDER=tmp_path / "order")
    assert codes == [-9] * count + [0], said
    if steps == STEPS:
        return same(run, straight, tmp_path / "order")
    forked([{"argv": train(config, whole, steps=steps), "kill": None}], root, tmp_path, ORDER=tmp_path / "once")
    assert contents(run) == contents(whole)
    assert order(tmp_path / "order") == order(tmp_path / "once")


@pytest.mark.parametrize("points", [1, pytest.param(66, marks=pytest.mark.slow)])
def test_killed_around_durable_acts_a_run_ends_as_if_never(config, straight, root, tmp_path, points):
    """Before and after renames, syncs and removals of some steps with saves and an evaluation, spread evenly."""
    begun, acts = straight[0].with_name("begun"), straight[2]
    assert acts > 60
    numbers = range(1 if points > 1 else acts // 2, acts, acts // points)
    lives = []
    for number in numbers:
        argv, copy = train(config, tmp_path / f"run{number}"), [str(begun), str(tmp_path / f"run{number}")]
        lives += [{"argv": argv, "copy": copy, "kill": {"event": number}}, {"argv": argv, "kill": None}]
    codes, said = forked(lives, root, tmp_path, ORDER=tmp_path / "order")
    assert codes == [-9, 0] * len(numbers), said
    for number in numbers:
        same(tmp_path / f"run{number}", straight, tmp_path / "order")


def launched(life, root, tmp_path, **more):
    """A life of two processes by torchrun."""
    (tmp_path / "life.json").write_text(json.dumps(life))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    command += ["--rdzv_endpoint", "127.0.0.1:0", str(root / "tests" / "killing.py"), str(tmp_path / "life.json")]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment(root, **more), **streams)


def rows(run):
    """The number of steps that a run has logged."""
    return (run / "metrics.jsonl").read_bytes().count(b"\n")


def family(pid):
    """A process and all that it started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in family(int(child)))]


@pytest.mark.slow
def test_two_processes_killed_and_resumed_end_as_if_never(config, root, tmp_path):
    """One of the two is killed (its launcher then ends the other), or launcher and both at once.

    Once all steps are logged, the act that a kill waits for may have been done already.
    """
    straight, run = tmp_path / "straight", tmp_path / "run"
    whole = launched({"argv": train(config, straight), "kill": None}, root, tmp_path, ORDER=tmp_path / "once")
    _, said = whole.communicate(timeout=300)
    assert whole.returncode == 0, said[-3000:]
    draw, deaths = random.Random(6), 0
    for i, kill in enumerate(moments(6, seed=5)):
        life = {"argv": train(config, run), "kill": kill, "rank": 0 if kill["phase"] != "step" else 1}
        if i % 3 == 2:
            life["kill"] = None
        process = launched(life, root, tmp_path, ORDER=tmp_path / "order")
        if i % 3 == 2:
            before = rows(run)
            while process.poll() is None and rows(run) <= before:
                time.sleep(0.02)
            time.sleep(draw.uniform(0, 0.2))
            for pid in family(process.pid) if process.poll() is None else ():
                os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=300)
        deaths += process.returncode != 0
        assert process.returncode != 0 or rows(run) == STEPS, "it was not killed"
    assert deaths >= 4
    last = launched({"argv": train(config, run), "kill": None}, root, tmp_path, ORDER=tmp_path / "order")
    _, said = last.communicate(timeout=300)
    assert last.returncode == 0, said[-3000:]
    assert contents(run) == contents(straight)
    assert order(tmp_path / "order") == order(tmp_path / "once")
