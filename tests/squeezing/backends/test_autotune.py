"""Which backend `auto` takes: the fastest of those that work, with one line in the log."""

import logging
import time

import pytest
import torch

from dit_shd import SHD
from dit_shd.attention.capture import Capture
from dit_shd.squeezing import divergence
from dit_shd.squeezing.backends import autotune

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    monkeypatch.setattr(autotune, "_chosen", {})


def broken():
    raise RuntimeError("out of resources:\nshared memory")


def test_what_is_slow_once_more_after_the_first_run_is_not_taken_for_slow():
    """As of kernels that are loaded when they are first launched, if that is in the second run."""
    waits = iter([0.1, 0.1])
    runs = {"triton": lambda: time.sleep(next(waits, 0.0)), "streamed": lambda: time.sleep(0.03)}
    assert autotune.fastest(("loads", "late"), "a layer", runs, CPU) == "triton"


def test_the_fastest_is_taken_and_remembered(caplog):
    runs = {"slow": lambda: time.sleep(0.02), "fast": lambda: None}
    with caplog.at_level(logging.INFO, "dit_shd"):
        assert [autotune.fastest(("kind",), "what", runs, CPU) for _ in range(2)] == ["fast", "fast"]
    assert len(caplog.records) == 1


def test_triton_that_fails_is_left_out_with_the_reason(caplog):
    with caplog.at_level(logging.INFO, "dit_shd"):
        assert autotune.fastest(("kind",), "a layer", {"triton": broken, "streamed": lambda: None}, CPU) == "streamed"
    (record,) = caplog.records
    assert record.getMessage().startswith("a layer: backend streamed (streamed ")
    assert record.getMessage().endswith("not triton: out of resources: shared memory)")


def test_the_only_one_is_not_measured_and_says_why_it_is(caplog):
    with caplog.at_level(logging.INFO, "dit_shd"):
        assert autotune.fastest(("kind",), "a layer", {"streamed": broken}, CPU, "heads are too wide") == "streamed"
    assert [r.getMessage() for r in caplog.records] == ["a layer: backend streamed (not triton: heads are too wide)"]


def test_an_error_of_another_backend_is_not_hidden():
    with pytest.raises(RuntimeError, match="out of resources"):
        autotune.fastest(("kind",), "a layer", {"streamed": broken, "fused": lambda: None}, CPU)


def test_lengths_up_to_the_same_power_of_two_share_a_trial():
    assert autotune.rounded((3, 12, 129, 64)) == autotune.rounded((4, 12, 256, 64)) == (4, 12, 256, 64)
    assert autotune.rounded((1, 12, 257, 64)) == (1, 12, 512, 64)


def layer(heads: int, n: int) -> dict[str, Capture]:
    query, key, value = (torch.randn(2, heads, n, 8) for _ in range(3))
    return {"layer": Capture(query, key, value, 8**-0.5, out=torch.randn(heads, 8, 16))}


def test_batches_of_other_lengths_are_not_timed_again(caplog, monkeypatch):
    monkeypatch.setattr(divergence, "choose", autotune.timed)  # as on a GPU
    loss = SHD()
    with caplog.at_level(logging.INFO, "dit_shd"):
        for n in (17, 20, 25, 31):
            assert torch.isfinite(loss(layer(4, n), layer(2, n)))
    assert sum("backend" in r.getMessage() for r in caplog.records) == 1
