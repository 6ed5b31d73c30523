"""The part of gpu.py that runs the kernels' tests on a GPU."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from _gpu import Sizes, row

TESTS = (
    "tests/squeezing/backends/test_triton.py", "tests/attention/kernels/test_launch.py",
    "tests/attention/kernels/test_captures.py", "tests/squeezing/test_synchronisations.py",
    "tests/core/test_cuda_graphs.py", "tests/squeezing/kernels",
)  # fmt: skip
"""What says most comes first."""
WORKERS = 14


class Rows:
    """A plug-in of pytest that prints a row for each test that fails, and how many passed."""

    def __init__(self) -> None:
        self.count = {"passed": 0, "failed": 0, "skipped": 0}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.count[report.outcome] += 1
        if report.outcome == "failed":
            row(report.nodeid, unit="error", note=reason(report.longreprtext))
        if report.when == "call" and self.count["passed"] % 20 == 0:
            row("passed so far", self.count["passed"], "tests")

    def pytest_sessionfinish(self) -> None:
        row("passed so far", self.count["passed"], "tests", ">= 1", f"in the end; {self.count['skipped']} skipped")


def reason(text: str) -> str:
    """The error and where it was raised, of pytest's long text of a failure."""
    lines = text.strip().splitlines()
    errors = [line[1:].strip() for line in lines if line.startswith("E ")]
    return f"{lines[-1]}: {' '.join(errors[:3])}"[:300] if lines else ""


def tests(sizes: Sizes) -> None:
    """The tests of the kernels, on the GPU."""
    root = Path(__file__).parents[1]
    options = ["-q", "-p", "no:cacheprovider", "-m", "not slow", f"--rootdir={root}"]
    if sizes.gpu and importlib.util.find_spec("xdist"):
        # compiling takes the time, on the CPU; one test at a time for each worker keeps the order
        options += ["-n", str(WORKERS), "--maxschedchunk", "1"]
    if not sizes.gpu:
        options += ["-k", "float64 and plain"]
    pytest.main([*options, *(str(root / test) for test in TESTS)], plugins=[Rows()])
