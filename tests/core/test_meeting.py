"""A launcher's processes that do not find each other say so and end, by themselves or by a signal."""

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

from dit_shd.core import meeting
from dit_shd.core.distributed import joined
from dit_shd.core.errors import UserError


def of_two(rank):
    """The environment of one of two processes, and where they are to meet."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = str(bound.getsockname()[1])
    told = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    return {**told, "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": ""}, f"127.0.0.1:{port}"


@pytest.mark.parametrize(("rank", "found"), [(0, "1 came to"), (1, "nothing answers at")])
def test_those_who_wait_in_vain_say_so_and_end(monkeypatch, caplog, rank, found):
    environment, where = of_two(rank)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(meeting, "PATIENCE", timedelta(seconds=1))
    monkeypatch.setattr(meeting, "SILENCE", timedelta(seconds=0.3))
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(
        UserError, match=f"rank {rank}: the 2 processes .* did not find each other in 1 s: {found} {where}"
    ):
        joined()
    (line,) = [record.getMessage() for record in caplog.records if record.name == "dit_shd"]
    assert line.startswith(f"rank {rank}: waiting for 2 processes at {where}: {found} {where}")
    AcceleratorState._reset_state(reset_partial_state=True)


WAITING = """
import sys
from datetime import timedelta
from dit_shd.core import meeting
meeting.SILENCE = timedelta(0)
from dit_shd.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("number", "rank", "words"), [("SIGTERM", 1, "ended by SIGTERM; "), ("SIGINT", 0, "interrupted; ")]
)
def test_a_signal_ends_those_who_wait(values, root, tmp_path, number, rank, words):
    config, log = tmp_path / "config.yaml", tmp_path / "log"
    config.write_text(yaml.safe_dump(values))
    environment, where = of_two(rank)
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", WAITING, "train", str(config)],
            env={**os.environ, **environment, "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""},
            stderr=stream,
        )
    try:
        limit = time.monotonic() + 120
        while f"waiting for 2 processes at {where}" not in log.read_text() and time.monotonic() < limit:
            time.sleep(0.05)
        process.send_signal(signal.Signals[number])
        assert process.wait(20) == 128 + signal.Signals[number], log.read_text()
    finally:
        process.kill()
        process.wait()
    assert log.read_text().splitlines()[-1] == f"dit-shd train: {words}the same command goes on from what is saved"
