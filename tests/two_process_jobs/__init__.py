"""Jobs of two processes, whose results tests read: one launch does all that the collected tests ask for.

To add one, add a file tests/two_process_jobs/NAME.py that defines

    def prepare(folder): ...  # in the tests' process: write what the job needs
    def work(folder): ...  # in each of the two processes, which is in one process group with the other

and mark tests with `@pytest.mark.two_processes("NAME")`; their fixture `by_two` is the folder, once both have worked. A
job must not fail: one that dies or raises in one process on purpose needs a launch of its own (runs.torchrun).
"""

import importlib
import json
import os
from pathlib import Path


def job(name):
    """The module of a job; there is no list to edit."""
    return importlib.import_module(f"{__name__}.{name}")


def say(folder, *lines):
    """Write what this process has to say, for the test."""
    (folder / f"said_{os.environ['RANK']}.json").write_text(json.dumps(lines))


def said(folder):
    """What each of the two processes said."""
    return [json.loads((folder / f"said_{rank}.json").read_text()) for rank in range(2)]


def read(folder, name):
    """A JSON file that prepare() wrote."""
    return json.loads((Path(folder) / name).read_text())
