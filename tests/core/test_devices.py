"""Which device a process works on; accelerators that this machine lacks are stood in for."""

from types import SimpleNamespace

import pytest
import torch

from dit_shd.core import devices


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many accelerators of a kind, and the numbers that were made the current one."""

    def machine(kind, count=1):
        chosen = []
        module = SimpleNamespace(device_count=lambda: count, set_device=chosen.append)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
        monkeypatch.setattr(torch, "get_device_module", lambda _: module)
        return chosen

    return machine


def test_a_kind_without_float64_counts_as_none(machine):
    machine("mps")
    assert devices.accelerator() is None
    assert devices.current_device() == devices.own_device() == torch.device("cpu")


@pytest.mark.parametrize(("count", "rank", "number"), [(4, "3", 3), (1, "3", 0), (2, None, 0)])
def test_a_process_makes_its_own_device_the_current_one(machine, monkeypatch, count, rank, number):
    """Of one that its launcher shows it alone, the first."""
    chosen = machine("cuda", count)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert devices.own_device() == torch.device("cuda", number)
    assert chosen == [number]
