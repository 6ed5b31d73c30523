"""The part of gpu.py that runs the kernels' tests on a GPU."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from _gpu import Sizes, row

TESTS = (
    "tests/attention/kernels", "tests/squeezing/backends/test_triton.py", "tests/squeezing/kernels",
    "tests/squeezing/test_synchronisations.py",
)  # fmt: skip


class Rows:
    """A plug-in of pytest that prints a row for each test that fails, and how many passed."""

    def __init__(self) -> None:
        self.count = {"passed": 0, "failed": 0, "skipped": 0}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.count[report.outcome] += 1
        if report.outcome == "failed":
            last = report.longreprtext.strip().splitlines()[-1][:300]
            row(report.nodeid, unit="error", note=last)
        if report.when == "call" and self.count["passed"] % 20 == 0:
            row("passed so far", self.count["passed"], "tests")

    def pytest_sessionfinish(self) -> None:
        row("passed so far", self.count["passed"], "tests", ">= 1", f"in the end; {self.count['skipped']} skipped")


def tests(sizes: Sizes) -> None:
    """The tests of the kernels, on the GPU."""
    root = Path(__file__).parents[1]
    options = ["-q", "-p", "no:cacheprovider", "-m", "not slow", f"--rootdir={root}"]
    if sizes.gpu and importlib.util.find_spec("xdist"):
        options += ["-n", "8"]  # compiling takes the time, on the CPU
    if not sizes.gpu:
        options += ["-k", "float64 and plain"]
    pytest.main([*options, *(str(root / test) for test in TESTS)], plugins=[Rows()])
