"""Ten images by the script for sampling."""

import contextlib
import io
import runpy
import sys
from pathlib import Path

from small_runs import write_teacher

from two_process_jobs import say

SCRIPT = Path(__file__).parents[2] / "sampling" / "sample_dit.py"
KEYS = ["count=10", "steps=6", "batch_size=4", "guided_channels=null"]


def prepare(folder):
    write_teacher(folder / "teacher")


def work(folder):
    before, out = sys.argv, io.StringIO()
    sys.argv = [str(SCRIPT), str(folder / "teacher"), *KEYS, f"out={folder / 'two.npz'}"]
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_path(str(SCRIPT), run_name="__main__")
        code = None
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = before
    say(folder, code, out.getvalue())
