"""Command lines: what a user can type."""

import random
from pathlib import Path

from dit_shd.cli.program import main
from dit_shd.core.errors import UserError

from . import Class
from .damage import WEIRD

WORDS = [
    "train",
    "sample",
    "evaluate",
    "inspect",
    "convert",
    "demo",
    "--help",
    "-h",
    "--version",
    "",
    "nothing",
    "--trust",
    "train.yaml",
]
KEYS = [
    "count",
    "steps",
    "run",
    "out",
    "reference",
    "features",
    "metrics",
    "batch_size",
    "device",
    "seed",
    "nonsense",
    "a.b",
]


def command(draw: random.Random, folder: Path) -> object:
    """Exit code 0 or 2, and never a traceback; nothing here names a model, so nothing long begins."""
    (folder / "empty").mkdir()
    (folder / "text.yaml").write_text("run: x\n")
    first = draw.choice(["empty", "missing", "text.yaml", "/", ".", "asset:nothing", str(draw.choice(WEIRD))])
    given = [f"{draw.choice(KEYS)}={draw.choice(WEIRD)}" for _ in range(draw.randrange(4))]
    name = draw.choice(WORDS)
    words = [name, *([first] if name != "demo" else ["out=/dev/null/x"]), *given]
    if draw.random() < 0.2:
        draw.shuffle(words)
        words = [word for word in words if word != "demo"]
    code = main(words)
    assert code in (0, 2), f"{words}: exit code {code}"
    if code == 2:
        raise UserError("refused")
    return code


def place(draw: random.Random, folder: Path) -> object:
    """Names of models, data and outputs that are nowhere, or nobody's, or no names; nothing is asked of the hub."""
    (folder / "runs" / "a").mkdir(parents=True)
    names = [
        "runs/b",
        "runs/a",
        "~",
        "~nobody/x",
        "hub:",
        "hub:x",
        "hub:../a",
        "hub:a/b@",
        "OWNER/NAME",
        "a\0b",
        "caf\udce9",
    ]
    name = draw.choice([*names, "x" * 5000, "runs/a/" * 900, "asset:", "asset:../a", "file:///x", "https://x/y"])
    command = draw.choice(
        [["sample", name, "count=1"], ["inspect", name], ["convert", name, "out"],
         ["encode", f"images={name}", "out=l"], ["encode", "images=runs", f"vae={name}", "out=l"],
         ["evaluate", name, f"reference={name}"]]
    )  # fmt: skip
    code = main(command)
    assert code in (0, 2), f"{command}: exit code {code}"
    if code == 2:
        raise UserError("refused")
    return code


CLASSES = [
    Class("command lines", "words, keys and values in any order; dit-shd", 60, command),
    Class("places", "names of nothing, nobody's homes, other bytes, the hub's syntax; every command", 40, place),
]
