"""What help reads from the source of a command is what its class says when it is imported."""

import dataclasses
import subprocess
import sys

import pytest

from dit_shd.cli.commands import COMMANDS
from dit_shd.cli.specification import specification
from dit_shd.core.config import resolve
from dit_shd.core.config_source import shown


def rows(cls, prefix=""):
    """(name, default, meaning, heading) key by key, of the class itself."""
    for field in dataclasses.fields(cls):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        name, doc, heading = f"{prefix}{field.name}", field.metadata["doc"], field.metadata["heading"]
        if dataclasses.is_dataclass(default) and not hasattr(default, "as_value"):
            yield name, "", doc, heading
            yield from rows(type(default), f"{name}.")
            continue
        text = "needed" if default is dataclasses.MISSING else shown(resolve(default))
        yield name, text, doc, heading


@pytest.mark.parametrize("name", COMMANDS.names())
def test_help_is_what_the_class_says(name):
    read, cls = specification(name), COMMANDS.find(name)
    assert [(k.name, k.default, k.doc, k.heading) for k in read.keys] == list(rows(cls.config))
    for attribute in ("words", "words_help", "places", "plugins", "synonyms", "file"):
        assert getattr(read, attribute) == getattr(cls, attribute), attribute
    assert read.text and "\n" not in read.text.partition("\n\n")[0]
    assert all(key.kind not in ("", "any") for key in read.keys if not key.nested and "dict[str, Any]" not in key.kind)


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help", "shd"], *([n, "--help"] for n in COMMANDS.names())])
def test_help_imports_no_torch(argv):
    code = (
        "import sys\nfrom dit_shd.cli.program import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "heavy = {'torch', 'numpy', 'diffusers'} & set(sys.modules); assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: dit-shd" in done.stdout or "--help" in argv[:-1]
