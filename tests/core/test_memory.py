"""Which errors are of memory, and the line for them."""

import platform
import subprocess
import sys

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_free_memory_goes_back_to_the_system_though_what_is_in_use_lies_behind_it():
    """In a process of its own, whose heap holds nothing else."""
    code = (
        "import ctypes\n"
        "from dit_shd.core.memory import give_back\n"
        "def resident(): return int(open('/proc/self/statm').read().split()[1]) * 4096 / 2**20\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]\n"
        "libc.free.argtypes = [ctypes.c_void_p]\n"
        "blocks = [libc.malloc(2**16) for _ in range(2000)]\n"
        "for block in blocks: ctypes.memset(block, 1, 2**16)\n"
        "for block in blocks[:-1]: libc.free(block)\n"
        "before = resident()\n"
        "give_back()\n"
        "assert resident() < before - 100, (before, resident())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
