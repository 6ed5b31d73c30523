"""Ten images by the script for sampling."""

import contextlib
import io
import os
import runpy
import sys
from pathlib import Path

import torch
from small_runs import write_teacher

from dit_shd.core.errors import UserError
from dit_shd.diffusion.generation import sample_to_file
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.models.loading import load
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
    say(folder, code, out.getvalue(), _of_two_models(folder))


def _of_two_models(folder):
    """What sampling says where one process has read weights that were written since the other read them."""
    model = load(str(folder / "teacher"))
    with torch.no_grad():
        model.final_layer.linear.bias += float(os.environ["RANK"])
    try:
        sample_to_file(SampleConfig(run=str(folder / "teacher"), count=4, steps=2, out=folder / "mixed.npz"), model)
    except UserError as error:
        return str(error)
