"""Images with captions encoded by the command, with a pipeline."""

import contextlib
import io

from encoded_text import encode
from tiny_pipelines import write_images, write_pipeline

from dit_shd.cli.program import main
from two_process_jobs import say

CAPTIONS = {f"{number:02d}": f"a {'thin' if number % 3 else 'thick'} seven" for number in range(11)} | {"07": None}


def prepare(folder):
    write_pipeline("sd3", folder / "pipeline")
    write_images(folder / "images", CAPTIONS)
    encode(folder / "one", folder / "pipeline", images=folder / "images")


def work(folder):
    out = io.StringIO()
    words = ["encode", f"images={folder / 'images'}", f"out={folder / 'two'}", f"pipeline={folder / 'pipeline'}"]
    with contextlib.redirect_stdout(out):
        code = main([*words, "size=16", "shard_size=2", "workers=1"])
    say(folder, code, out.getvalue())
