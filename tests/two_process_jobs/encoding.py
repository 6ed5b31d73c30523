"""Twenty images encoded by the command."""

import contextlib
import io

import numpy as np
from encoded import encode, pictures, tiny_vae, write_folder

from dit_shd.cli.program import main
from two_process_jobs import say

LABELS = np.arange(20) // 7


def prepare(folder):
    tiny_vae().save_pretrained(folder / "vae")
    write_folder(folder / "images", pictures(20), LABELS)
    encode(folder / "images", folder / "one", vae=str(folder / "vae"))


def work(folder):
    out = io.StringIO()
    words = ["encode", f"images={folder / 'images'}", f"out={folder / 'two'}", f"vae={folder / 'vae'}"]
    with contextlib.redirect_stdout(out):
        code = main([*words, "size=8", "batch_size=4", "shard_size=8"])
    say(folder, code, out.getvalue())
