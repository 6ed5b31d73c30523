"""Which device a process works on; accelerators that this machine lacks are stood in for."""

from types import SimpleNamespace

import pytest
import torch

from dit_shd.core import devices
from dit_shd.core.errors import UserError


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


def test_auto_is_the_gpu_where_there_is_one(monkeypatch):
    for available, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=available: found)
        assert devices.find_device("auto") == torch.device(kind)


@pytest.mark.parametrize("name", ["abacus", None, "cpu:x", 1.5])
@pytest.mark.parametrize(("float64", "wanted"), [(False, "a device of this machine"), (True, "a device with float64")])
def test_what_is_no_device_is_told_in_one_line(name, float64, wanted):
    with pytest.raises(UserError, match=rf"^device: wanted auto or {wanted}, found '{name}' \(.+\); try device=cpu$"):
        devices.find_device(name, float64)
