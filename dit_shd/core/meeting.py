"""Before a launcher's processes form their group: they meet, and say so where some do not come.

Torch waits for the others in C++, where no signal is heard and nothing is said. Here they are waited for in Python.
"""

import logging
import os
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from dit_shd.core.devices import accelerator
from dit_shd.core.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import TCPStore

_log = logging.getLogger("dit_shd")
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables without which there is nowhere to meet."""
PATIENCE = timedelta(hours=3)
"""How long processes wait for one of them, which may be fetching a model, scoring or saving; NCCL has 10 minutes."""
SILENCE = timedelta(seconds=10)
"""How long they wait without a word; then with one each 60 times as long."""
PAUSE = 0.1
"""Seconds between two looks."""


class _Wait:
    """How long this process has waited for the others."""

    def __init__(self, rank: int, processes: int, where: str):
        self.begin, self.silence = time.monotonic(), SILENCE.total_seconds()
        self.rank, self.processes, self.where = rank, processes, where

    def pause(self, state: str) -> None:
        """Wait for a moment.

        Args:
            state: What there is so far, for the error.

        Raises:
            UserError: It has been too long.
        """
        waited = time.monotonic() - self.begin
        if waited > PATIENCE.total_seconds():
            raise UserError(
                f"rank {self.rank}: the {self.processes} processes of the launcher did not find each other in "
                f"{waited:.0f} s: {state}; start all of them, with one MASTER_ADDR and MASTER_PORT that each can reach"
            )
        if waited > self.silence:
            self.silence = waited + 60 * SILENCE.total_seconds()
            _log.warning("rank %s: waiting for %s processes at %s: %s", self.rank, self.processes, self.where, state)
        time.sleep(PAUSE)


@contextmanager
def met() -> Generator[None]:
    """The block in which a group is formed; it begins when all of the launcher's processes have come.

    Raises:
        UserError: They have not in PATIENCE.
        ValueError: A variable of the environment is no number.
        RuntimeError: Their meeting place failed.
    """
    store = None
    a_group = "LOCAL_RANK" in os.environ or accelerator() is None  # else accelerate forms none
    if a_group and all(os.environ.get(name) for name in NEEDED) and int(os.environ["WORLD_SIZE"]) > 1:
        import torch

        if not torch.distributed.is_initialized():
            store = _meet()
    yield
    del store  # it serves the others, who form the group by now


def _meet() -> "TCPStore":
    """Wait until all processes are at the store, which this one opens where it is the first one's to open."""
    rank, processes, host, port = (os.environ[name] for name in NEEDED)
    wait = _Wait(int(rank), int(processes), f"{host}:{port}")
    store = _opened(wait, host, int(port))
    arrived = f"dit_shd/arrived/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"  # one store for all attempts
    count = int(store.add(arrived, 1))
    while count < wait.processes:
        wait.pause(f"{count} came to {wait.where}")
        count = int(store.add(arrived, 0))
    return store


def _opened(wait: _Wait, host: str, port: int) -> "TCPStore":
    from torch.distributed import TCPStore

    if not 0 < port < 2**16:
        raise ValueError(f"port {port} is none of 1 to 65535")
    store = None
    if wait.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # else torchrun itself serves
        modern = os.environ.get("USE_LIBUV", "1") == "1"  # as torch, which shares the store that is there
        store = TCPStore(
            "localhost", port, None, True, PATIENCE, wait_for_workers=False, multi_tenant=True, use_libuv=modern
        )
    while not _answers(host, port):
        wait.pause(f"nothing answers at {wait.where}, where the first one is to be")
    return store or TCPStore(host, port, None, False, PATIENCE, wait_for_workers=False)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True
