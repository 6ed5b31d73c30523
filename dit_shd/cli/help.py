"""The text of --help: of dit-shd, of a command with all its keys, of one plug-in or one key."""

import difflib
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping

from dit_shd.cli.specification import Specification
from dit_shd.core.config_source import Key
from dit_shd.core.errors import UserError
from dit_shd.core.plugin_source import plugin_names, plugin_source

ORDER = (
    ("Distil and train", ("demo", "configs", "train", "losses", "show", "plot", "study")),
    ("Sample and evaluate", ("sample", "pictures", "evaluate", "compare", "statistics", "accuracy", "perplexity")),
    ("Models and data", ("encode", "convert", "pipeline", "inspect", "depth", "export", "publish")),
)
"""Commands under headings, in the order in which help lists them; others follow."""


def program(commands: Mapping[str, Specification]) -> str:
    """The text of `dit-shd --help`.

    Args:
        commands: The commands, by name.
    """
    listed = {name for _, names in ORDER for name in names}
    groups = [*ORDER, ("More", tuple(name for name in commands if name not in listed))]
    width = max(map(len, commands))
    lines = [
        "usage: dit-shd COMMAND [words] [key=value ...]",
        "",
        "Distil diffusion transformers into smaller ones through their attention; sample and evaluate them.",
        "The first thing to try: dit-shd demo. Explained with all its keys: dit-shd COMMAND --help",
    ]
    for heading, names in groups:
        rows = [f"  {name:<{width}}  {commands[name].summary}" for name in names if name in commands]
        lines += ["", f"{heading}:", *rows] if rows else []
    lines += [
        "",
        "Anywhere:",
        "  -h, --help       this text, or that of a command",
        "  --version        the version",
        "  --trust PACKAGE  let configs and commands name plug-ins of PACKAGE, as my_package.my_loss.MyLoss;",
        "                   packages of the working folder are found, too",
    ]
    return "\n".join(lines)


def command(spec: Specification) -> str:
    """The text of `dit-shd COMMAND --help`.

    Args:
        spec: The spec of the command.
    """
    lines = [f"usage: {spec.usage}", "", spec.text]
    if spec.words:
        lines += ["", f"  {' '.join(spec.words.values())}: {spec.words_help}"]
    if spec.keys:
        lines += ["", "keys (key=value; dots reach inside, as optimizer.lr=1e-4; values are YAML):", *_lines(spec.keys)]
    if spec.file_keys:
        lines += ["", f"keys of {next(iter(spec.words.values()))}:", *_lines(spec.file_keys)]
    for key, package in spec.plugins.items():
        lines += ["", f"{key}: {', '.join(plugin_names(package))}"]
    if spec.plugins:
        first = plugin_names(next(iter(spec.plugins.values())))[-1]
        lines += ["", f"one of them with its keys, or one key: dit-shd {spec.name} --help {first}"]
    return "\n".join(lines)


def topic(spec: Specification, word: str) -> str:
    """The text of `dit-shd COMMAND --help WORD`: a plug-in, all plug-ins of a key, or a key.

    Args:
        spec: The spec of the command.
        word: The name of one of them.

    Raises:
        UserError: There is none of this name.
    """
    plugins = [(key, package) for key, package in spec.plugins.items() if word in plugin_names(package)]
    every = [*spec.keys, *spec.file_keys]
    wanted = (word, f"{word}_run") if word in spec.moved else (word,)  # from=RUN
    keys = [key for key in every if key.name in wanted or key.name.rpartition(".")[2] in wanted]
    inside = [key for key in spec.keys if key.name.startswith(f"{word}.")]
    blocks = [_plugin(key, package, word) for key, package in plugins]
    if keys:
        blocks.append("\n".join(_lines([*keys, *(key for key in inside if key not in keys)])))
    if word in spec.plugins:
        package = spec.plugins[word]
        rows = (f"  {name}: {plugin_source(package, name).text.splitlines()[0]}" for name in plugin_names(package))
        blocks.append("\n".join(["it can be:", *rows, f"with all keys: dit-shd {spec.name} --help NAME"]))
    blocks += _inside_plugins(spec, word)
    if blocks:
        return "\n\n".join(blocks)
    known = [*(key.name for key in every), *(name for p in spec.plugins.values() for name in plugin_names(p))]
    near = difflib.get_close_matches(word, known, 1, 0.5)
    raise UserError(
        f"--help {word}: no key or plug-in of this name{f', did you mean {near[0]}?' if near else ''}; "
        f"dit-shd {spec.name} --help lists them"
    )


def _inside_plugins(spec: Specification, word: str) -> list[str]:
    """Keys of plug-ins that have keys inside, by their names: evaluation, task.evaluation."""
    blocks: list[str] = []
    for place, package in spec.plugins.items():
        for name in plugin_names(package):
            source = plugin_source(package, name)
            keys = [key for key in source.keys if key.inside and word in (key.name, f"{place}.{key.name}")]
            blocks += [f"of {name} ({source.kind}):\n" + "\n".join(_lines(keys))] if keys else []
    return blocks


def _plugin(key: str, package: str, name: str) -> str:
    source = plugin_source(package, name)
    options = "".join(f", {k.name}: {k.default}" for k in source.keys[1:2] if k.default not in ("null", "needed"))
    example = f"{{name: {name}{options}}}"
    usage = f"{key}='[{example}]'" if key in ("losses", "metrics") else f"{key}='{example}'"
    return "\n".join([f"{name} ({source.kind}), as {usage}", "", source.text, "", *_lines(source.keys)])


def _lines(keys: Iterable[Key]) -> list[str]:
    """A line for each key, broken at the width of the terminal, under their headings."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10**6
    lines: list[str] = []
    for key in keys:
        indent = "  " * (key.depth + 1)
        lines += ["", f" {key.heading}:"] if key.heading else []
        lines += textwrap.wrap(
            f"{indent}{key.line()}", width, subsequent_indent=f"{indent}      ", break_long_words=False
        )
        lines += _lines(key.inside)
    return lines
