"""Which errors are of memory, and the line for them."""

import pytest
import torch

from dit_shd.core.memory import is_out_of_memory, memory_line


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU"),
            "on the GPU for 20.00 MiB more",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes"),
            "for 4.0 GiB",
        ),
        (MemoryError(), "no room in memory;"),
    ],
)
def test_errors_of_memory(error, words):
    assert is_out_of_memory(error)
    assert words in memory_line(error, training=True) and "micro_batch_size" in memory_line(error, training=True)
    assert "batch_size" in memory_line(error, training=False)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory"), KeyError("x")])
def test_other_errors(error):
    assert not is_out_of_memory(error)
