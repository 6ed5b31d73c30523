"""Every script of benchmarks/ that needs no GPU runs to its end, as small as it goes; figures are another matter."""

import os
import subprocess
import sys

import pytest

SMALL = {
    "kernel": "--repeats 1 --tokens 256",
    "step": "--repeats 1 --tokens 256 --images 1",
    "losses": "--repeats 1 --tokens 256 --losses shd feature --out OUT/losses.jsonl",
    "model": None,
    "teacher": "--repeats 1 --tokens 256",
    "estimates": None,
    "metrics": "--repeats 1 --images 500 --large 500",
    "capture": "--repeats 1 --tokens 256",
    "first_forward": "--repeats 1",
    "sampling": None,
    "loader": "--repeats 1 --latents 1024",
    "initialisation": "--steps 1 --seeds 1 --sides pick",
    "rounded_times": "--samples 20",
    "triton_kernels": "--arch 90 --width 64 --dtype bf16 --only attend_values",
    "roofline": "--tokens 256",
    "gpu": None,
    "gpu_parts": None,
    "gpu_blocks": None,
}
"""Arguments; None: of tests/test_gpu_benchmark.py, of a GPU, of the public code of MDT, or of a quarter of an hour."""


def test_all_benchmarks_are_named_here(root):
    scripts = {file.stem for file in (root / "benchmarks").glob("*.py") if "__main__" in file.read_text()}
    assert scripts == set(SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, arguments in SMALL.items() if arguments is not None])
def test_a_benchmark_runs_to_its_end(root, tmp_path, name):
    command = [sys.executable, root / "benchmarks" / f"{name}.py", *SMALL[name].replace("OUT", str(tmp_path)).split()]
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}  # which conftest.py sets
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
