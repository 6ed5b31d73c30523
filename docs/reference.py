"""The reference of commands and configs, which docs/make_site.py makes for the site alone.

cli_page is what every command prints for --help; configs_page is made of plug-ins' docstrings and headers of configs.
"""

import contextlib
import inspect
import io
import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def cli_page() -> str:
    """Every command as --help explains it."""
    from dit_shd.cli.commands import COMMANDS
    from dit_shd.cli.program import main

    os.environ["COLUMNS"] = "100"
    parts = ["# Command line", "Made by `make docs` from what every command prints for `--help`."]
    for name in ["", *COMMANDS.names()]:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([name, "--help"] if name else ["--help"])
        parts += [f"## dit-shd {name}".rstrip(), f"```text\n{printed.getvalue().rstrip()}\n```"]
    return "\n\n".join(parts) + "\n"


def configs_page() -> str:
    """Every plug-in with its keys, and every packaged config with its cost."""
    from dit_shd.data.datasets import DATASETS
    from dit_shd.distillation.losses import LOSSES
    from dit_shd.evaluation.features import FEATURES
    from dit_shd.evaluation.metrics import METRICS
    from dit_shd.tasks import TASKS

    kinds = {"Losses": LOSSES, "Tasks": TASKS, "Datasets": DATASETS, "Feature networks": FEATURES, "Metrics": METRICS}
    parts = [
        "# Configs",
        "Made by `make docs` from docstrings and from the headers of `configs/`. The keys of a run itself, with "
        "their defaults, are those of [dit-shd train](cli.md#dit-shd-train); each plug-in below is "
        "`{name: NAME, key: value}`.",
    ]
    for title, folder in kinds.items():
        parts.append(f"## {title}")
        parts += [_plugin(name, folder.find(name)) for name in folder.names()]
    rows = [_config(file) for file in sorted((ROOT / "configs").rglob("*.yaml")) if file.parent.name != "accelerate"]
    heading = "| config | what it is | cost |\n|---|---|---|\n"
    return "\n\n".join([*parts, "## Experiments", heading + "\n".join(rows)]) + "\n"


def _plugin(name: str, cls: type) -> str:
    """A plug-in: the first sentences of its docstring, and its keys with defaults and meanings."""
    text = inspect.getdoc(cls) or ""
    first = text.partition("\n\n")[0].replace("\n", " ")
    meanings = _arguments(text)
    rows = []
    for key, parameter in inspect.signature(cls.__init__).parameters.items():
        if key == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = "required" if parameter.default is parameter.empty else f"`{parameter.default!r}`"
        rows.append(f"| `{key}` | {default} | {meanings.get(key, '').replace('|', chr(92) + '|')} |")
    table = "| key | default | meaning |\n|---|---|---|\n" + "\n".join(rows)
    return f"### {name}\n\n{first}" + (f"\n\n{table}" if rows else "")


def _arguments(docstring: str) -> dict[str, str]:
    """The arguments of a Google-style docstring -> their meanings."""
    section = re.search(r"^Args:\n((?:[ ]{4}.*\n?|\n)*)", docstring, re.MULTILINE)
    entries = re.split(r"^    (?=\w+(?:, \w+)*:)", section[1] if section else "", flags=re.MULTILINE)
    pairs = (entry.partition(":")[::2] for entry in entries if entry.strip())
    return {name.strip(): " ".join(words.split()) for names, words in pairs for name in names.split(",")}


def _config(file: Path) -> str:
    """A row of the table of configs, from the comment at its head."""
    header = "".join(line[1:].rstrip() + "\n" for line in file.read_text().splitlines() if line.startswith("#"))
    first = header.partition("\n\n")[0]
    cost = re.search(r"Cost: (.*?[.;])(?=\s|$)", first.replace("\n", " "))
    words = re.split(r"(?<=[.])\s", " ".join(first.split()))[0]
    return f"| `{file.relative_to(ROOT)}` | {words} | {cost[1].rstrip('.;') if cost else ''} |"
