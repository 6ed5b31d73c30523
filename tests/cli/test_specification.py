"""What help reads from the source of a command is what its class says when it is imported."""

import dataclasses
import subprocess
import sys

import pytest
import yaml

from dit_shd.cli.commands import COMMANDS
from dit_shd.cli.specification import specification
from dit_shd.core.config import resolve


def lines(cls, indent="  "):
    """Key by key, as help shows it: the prefix up to the meaning."""
    for field in dataclasses.fields(cls):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if dataclasses.is_dataclass(default) and not hasattr(default, "as_value"):
            yield f"{indent}{field.name}:  {field.metadata['doc']}".rstrip()
            yield from lines(type(default), indent + "  ")
            continue
        shown = "needed"
        if default is not dataclasses.MISSING:
            shown = yaml.safe_dump(resolve(default), default_flow_style=True).splitlines()[0]
        yield f"{indent}{field.name}={shown}  {field.metadata['doc']}".rstrip()


@pytest.mark.parametrize("name", COMMANDS.names())
def test_help_is_what_the_class_says(name):
    read, cls = specification(name), COMMANDS.find(name)
    assert [line.rstrip() for line in read.keys.splitlines()] == list(lines(cls.config))
    assert (dict(read.words), read.words_help, dict(read.places)) == (cls.words, cls.words_help, cls.places)
    assert read.text and "\n" not in read.text.partition("\n\n")[0]


@pytest.mark.parametrize("argv", [["--help"], *([name, "--help"] for name in COMMANDS.names())])
def test_help_imports_no_torch(argv):
    code = (
        "import sys\nfrom dit_shd.cli.program import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'numpy', 'diffusers'} & set(sys.modules); assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: dit-shd" in done.stdout
