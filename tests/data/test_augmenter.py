"""Augmentation in worker processes: the same inputs as without, errors, and workers that end with their parent."""

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from dit_shd.core.errors import UserError
from dit_shd.data.augmentation import Augmentation, ImageInput, TrainTransform
from dit_shd.data.augmenter import Augmenter

GRAY = ImageInput((1, 8, 8), (0.5,), (0.5,))


FAILING = """
import os
from dit_shd.core.errors import UserError
from dit_shd.data.datasets.npz import Npz

class Failing(Npz):
    def image(self, index):
        if index == 7:
            raise UserError("image 7: cannot be decoded")
        if index == 8:
            os._exit(3)
        return super().image(index)
"""


def test_workers_make_the_same_inputs_and_say_what_is_wrong(shapes, tmp_path, monkeypatch):
    """Also of fewer images than workers; a worker that is gone is said in a line."""
    (tmp_path / "failing_images.py").write_text(FAILING)
    monkeypatch.syspath_prepend(tmp_path)  # workers get the path, too
    before = children()
    data = importlib.import_module("failing_images").Failing(shapes)
    alone, helped = (Augmenter(data, TrainTransform(Augmentation(), GRAY, seed=1), workers) for workers in (0, 2))
    items = [(int(i), 4, p) for p, i in enumerate(np.random.default_rng(0).permutation(60)[:11]) if i not in (7, 8)]
    whole = alone(items)
    assert torch.equal(helped(items), whole) and len({float(x.sum()) for x in whole}) == len(items)
    assert torch.equal(helped(items[:1]), whole[:1])
    with pytest.raises(UserError, match="image 7: cannot be decoded"):
        helped([(7, 0, 0)])
    workers = children() - before
    with pytest.raises(UserError, match=r"task\.workers: a worker process was ended, for want of memory perhaps"):
        helped([(8, 0, 0)])
    assert len(workers) == 2
    assert any(not any(map(alive, workers)) or time.sleep(0.1) for _ in range(600))  # the pool ends the other one


PARENT = """
import multiprocessing, os, signal, sys
from dit_shd.data.augmentation import Augmentation, ImageInput, TrainTransform
from dit_shd.data.augmenter import Augmenter
from dit_shd.data.datasets.npz import Npz

if __name__ == "__main__":
    transform = TrainTransform(Augmentation(), ImageInput((1, 8, 8), (0.5,), (0.5,)))
    augmenter = Augmenter(Npz(sys.argv[1]), transform, 1)
    augmenter([(0, 0, 0)])
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    sys.stdin.readline()
    print(*augmenter([(0, 0, 0)]).shape, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_leave_signals_to_their_parent_and_end_with_one_that_is_killed(shapes, tmp_path, root):
    """SLURM and launchers signal all processes of a job, of which the one that trains saves the run first."""
    (tmp_path / "parent.py").write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, tmp_path / "parent.py", shapes]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as parent:
        pid = int(parent.stdout.readline())
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
            os.kill(pid, number)
        time.sleep(0.5)
        assert parent.communicate("go on\n", timeout=300)[0].split() == ["1", "1", "8", "8"]
    for _ in range(600):
        if not alive(pid):
            return
        time.sleep(0.1)
    pytest.fail("the worker lives on")


def children():
    """The processes that this one has begun, those of earlier tests among them."""
    return {child.pid for child in multiprocessing.active_children()}


def alive(pid):
    """Whether a process runs; one that has ended and that nobody has asked after does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
