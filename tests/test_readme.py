"""README.md: every command is one that runs, from a clean folder, and so does its Python."""

import re
import shlex
from types import SimpleNamespace

import pytest
import torch

from dit_shd.cli.arguments import split, values_of
from dit_shd.cli.program import main
from dit_shd.cli.specification import command_names, specification
from dit_shd.models.families.mdt import MDTv2

SMALL = {
    "train": ["steps=2", "batch_size=4", "ema=0.5", "log_every=1"],
    "sample": ["steps=2"],
    "inspect": ["samples=4"],
}
"""What is added to a command here, so that it takes seconds."""
ELSEWHERE = {
    "dit-shd demo": "tests/cli/test_digits_demo.py",
    "dit-shd demo task=text": "tests/cli/test_text_demo.py",
    "dit-shd train mdtv2_b2_to_s2_shd dry_run=true": "tests/test_configs.py; true sizes take minutes",
    "dit-shd encode images=FOLDER out=LATENTS": "tests/data/test_encoding.py",
    "dit-shd convert DiT-XL-2-256x256.pt dit_xl2": "tests/models/test_conversion.py",
    "dit-shd study STUDY.yaml": "tests/study",
    "dit-shd export RUN": "tests/cli/commands/test_export.py",
    "dit-shd publish RUN OWNER/NAME": "tests/cli/commands/test_publish.py",
    "dit-shd compare runs/digits_output runs/digits_shd": "tests/cli/commands/test_compare.py",
    "dit-shd pictures teacher.npz student.npz": "tests/cli/commands/test_pictures.py",
    "dit-shd evaluate SAMPLES.npz reference=digits features=digits": "below, with the name of a file",
    "dit-shd train CONFIG from=runs/digits_shd run=runs/new": "below, likewise",
}
"""Commands of the README that are run by another test."""


@pytest.fixture(scope="module")
def text(root) -> str:
    return (root / "README.md").read_text()


def commands(text: str) -> list[str]:
    """Every dit-shd command, of blocks and of tables, without what stands behind it."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    inline = re.findall(r"`(dit-shd [^`]*)`", text)
    found = [line for line in [*lines, *inline] if line.startswith("dit-shd")]
    return list(dict.fromkeys(found))


def test_every_command_has_words_and_keys_that_exist(text):
    found = commands(text)
    assert len(found) > 15
    for command in found:
        line = split(shlex.split(command)[1:])
        assert line.command in command_names(), command
        if line.help is None and "CONFIG" not in line.names:
            values_of(line, specification(line.command))


def test_the_commands_run_in_their_order_from_a_clean_folder(text, tmp_path, monkeypatch, capsys, caplog):
    pytest.importorskip("mlxtend")
    caplog.set_level("INFO", "dit_shd")
    monkeypatch.chdir(tmp_path)
    assert set(ELSEWHERE) <= set(commands(text)), "not in the README any more"
    for command in [c for c in commands(text) if c not in ELSEWHERE]:
        words = shlex.split(command)[1:]
        small = [] if "--help" in words else SMALL.get(words[0], [])
        assert main([*words, *small]) == 0, (command, capsys.readouterr().err)
    shown = capsys.readouterr().out
    assert "finished, step 2 of 2" in shown and "done: threes/, threes.png beside it" in shown
    assert len(list((tmp_path / "threes").glob("*_3.png"))) == 2 and len(list((tmp_path / "threes").iterdir())) == 3
    assert main(["sample", "runs/digits_shd", "count=40", "steps=2", "labels=balanced"]) == 0
    following = re.search(r"next: (dit-shd evaluate .*)", capsys.readouterr().out)[1]
    assert main(shlex.split(following)[1:]) == 0, "a line that can be pasted"
    assert "FD(digits)" in capsys.readouterr().out
    new = ["train", "digits_output", "from=runs/digits_shd", "run=runs/new", *SMALL["train"]]
    assert main(new) == 0
    assert "parameters taken" in caplog.text


def test_the_python_runs(text, tmp_path, monkeypatch):
    pytest.importorskip("mlxtend")
    monkeypatch.chdir(tmp_path)
    loop, calls = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    torch.manual_seed(0)
    sizes = dict(sample_size=8, in_channels=1, num_layers=4, decode_layer=2, attention_head_dim=8, num_classes=3)
    teacher, student = (MDTv2(**sizes, num_attention_heads=heads) for heads in (4, 2))
    inputs = dict(x_t=torch.randn(2, 1, 8, 8), timestep=torch.tensor([5, 500]), labels=torch.tensor([0, 2]))
    for parameter in (*teacher.parameters(), *student.parameters()):
        torch.nn.init.normal_(parameter, std=0.2)
    student.forward = with_names(student.forward)
    teacher.forward = with_names(teacher.forward)
    scope = {**inputs, "torch": torch, "teacher": teacher, "student": student, "noise_loss": torch.Tensor.mean}
    exec(loop, scope)
    scope["loss"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    small = calls.replace("steps=100", "steps=2, batch_size=4, ema=0.5").replace("steps=50", "steps=2")
    assert small != calls
    exec(small, scope)
    assert scope["run"].step == 2 and scope["three"].images.shape == (3, 28, 28, 1)
    assert "FD(digits)" in scope["figures"]


def with_names(forward):
    """The labels as they are given in a script: third in place."""
    return lambda x, t, labels: SimpleNamespace(sample=forward(x, t, class_labels=labels).sample)


def test_the_picture_and_every_page_are_there(text, root):
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or (root / target).exists(), target
