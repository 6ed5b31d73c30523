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
from accelerate.state import AcceleratorState

from dit_shd.core import meeting
from dit_shd.core.distributed import joined
from dit_shd.core.errors import UserError


def of_two(rank, host="127.0.0.1"):
    """The environment of one of two processes, and where they are to meet."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = str(bound.getsockname()[1])
    told = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": host}
    return {**told, "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": ""}, f"{host}:{port}"


@pytest.mark.parametrize(
    ("rank", "host", "found"),
    [
        (0, "127.0.0.1", "1 came to"),
        (1, "127.0.0.1", "nothing answers at"),
        (0, "192.0.2.1", "nothing answers at"),  # of no machine (RFC 5737): not of the first one, as it is told
    ],
)
def test_those_who_wait_in_vain_say_so_and_end(monkeypatch, caplog, rank, host, found):
    environment, where = of_two(rank, host)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(meeting, "PATIENCE", timedelta(seconds=1))
    monkeypatch.setattr(meeting, "SILENCE", timedelta(seconds=0.3))
    AcceleratorState._reset_state(reset_partial_state=True)
    words = rf"rank {rank}: the 2 processes .* did not find each other in \d+ s: {found} {where}"
    with pytest.raises(UserError, match=words):
        joined()
    line = next(record.getMessage() for record in caplog.records if record.name == "dit_shd")
    assert line.startswith(f"rank {rank}: waiting for 2 processes at {where}: {found} {where}")
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("port", ["0", "99999", "29k"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_port_that_is_none_is_said_at_once(monkeypatch, rank, port):
    for name, value in {**of_two(rank)[0], "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(UserError, match=rf"MASTER_PORT={port}\), but no group .*{port}"):
        joined()
    AcceleratorState._reset_state(reset_partial_state=True)


WAITING = """
import sys
from datetime import timedelta
from dit_shd.core import meeting
from dit_shd.core.signals import Stopped, terminable
meeting.SILENCE = timedelta(0)
try:
    with terminable("on"), meeting.met():
        pass
except Stopped as stopped:
    sys.exit(stopped.code)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize(("number", "rank"), [("SIGTERM", 1), ("SIGINT", 0)])
def test_a_signal_ends_those_who_wait(root, tmp_path, number, rank):
    environment, where = of_two(rank)
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", WAITING],
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
