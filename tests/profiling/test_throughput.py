"""What a row of the timing log says of the steps since the last one, by a clock that is set."""

import pytest
import torch

from dit_shd.profiling import throughput
from dit_shd.profiling.throughput import Throughput


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(throughput, "peak_memory", lambda device: 3 * 2**29)
    return now


def test_a_row_is_of_the_steps_since_the_last_one(clock):
    counted = Throughput(8, {0: 3e12, 6: 1e12}, 80.0, torch.device("cpu"))
    counted.pause()
    for _ in range(4):
        clock[0] += 0.5
        counted.step()
    first = {"seconds": 0.5, "images_per_second": 16.0, "tflops": 48.0, "mfu": 0.6, "memory_gib": 1.5}
    assert counted.row(5) == first
    clock[0] += 2
    counted.step()
    assert counted.row(6) == {**first, "seconds": 2.0, "images_per_second": 4.0, "tflops": 4.0, "mfu": 0.05}


def test_what_is_no_training_takes_no_time(clock):
    counted = Throughput(8, None, None, torch.device("cpu"))
    counted.step()
    clock[0] += 1000
    counted.pause()
    clock[0] += 3
    counted.step()
    assert counted.row(9) == {"seconds": 3.0, "images_per_second": pytest.approx(8 / 3, rel=1e-3), "memory_gib": 1.5}
