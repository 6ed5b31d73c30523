"""The experiments that ship with dit_shd: the files of configs/, in a source tree and in an installed package."""

import difflib
import logging
import re
from importlib import resources
from pathlib import Path
from typing import Any

from dit_shd.core.errors import UserError
from dit_shd.core.places import expanded, instead
from dit_shd.core.run_files import RUN_CONFIG
from dit_shd.core.yaml_files import read_yaml

_log = logging.getLogger("dit_shd")
LAUNCHERS = "accelerate"
"""A folder among them whose files are accelerate's, not configs of runs."""


def shipped_folder() -> Path:
    """The folder of the configs: among the assets of an installed package, beside it in a source tree."""
    package = Path(str(resources.files("dit_shd")))
    installed = package / "assets" / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def shipped_configs() -> dict[str, Path]:
    """The file of each experiment by its name: digits_shd, or classification/deit_ti_alone."""
    folder = shipped_folder()
    files = sorted(folder.rglob("*.yaml"), key=lambda file: (len(file.relative_to(folder).parts), file))
    files = [file for file in files if "\nrun: " in file.read_text(encoding="utf-8")]  # not what other commands read
    names = {file: file.relative_to(folder).with_suffix("").as_posix() for file in files}
    return {name: file for file, name in names.items() if name.partition("/")[0] != LAUNCHERS}


def find_shipped(text: str) -> Path | None:
    """The file of an experiment by name or as configs/NAME.yaml; None where there is none of this name."""
    name = text.removeprefix("./").removeprefix("configs/").removesuffix(".yaml").removesuffix(".yml")
    configs = shipped_configs()
    by_last = {key.rpartition("/")[2]: file for key, file in configs.items()}
    return configs.get(name) or by_last.get(name)


def config_file(text: str | Path) -> Path:
    """The config that a word names: a file, the run folder that holds it, or an experiment that ships with dit_shd.

    Raises:
        UserError: There is none; the error has the names of similar ones.
    """
    path = Path(expanded(text))
    if path.is_file():
        return path
    if (path / RUN_CONFIG).is_file():
        return path / RUN_CONFIG
    shipped = None if path.exists() and not path.is_dir() else find_shipped(str(text))
    if shipped is not None:
        return shipped
    near = similar(str(text))
    hint = f", did you mean {' or '.join(near)}?" if near else f" ({instead(path)});"
    kind = "a folder without config.yaml" if path.is_dir() else "nothing"
    raise UserError(
        f"{text}: wanted a config file (YAML) or the name of an experiment, found {kind}{hint} dit-shd configs lists "
        "the experiments"
    )


def read_config(text: str | Path) -> dict[str, Any]:
    """The values of such a config; those of a run folder go on with the run in it.

    Raises:
        UserError: There is none, or it is not valid YAML.
    """
    file, folder = config_file(text), Path(expanded(text))
    if file != folder / RUN_CONFIG:
        return read_yaml(file)
    if find_shipped(str(text)) is not None:
        _log.info("%s: of the run in this folder, not of the experiment: that is configs/%s.yaml", file, folder.name)
    return read_yaml(file) | {"run": str(text)}


def similar(text: str) -> list[str]:
    """Names of experiments that resemble a mistyped one, the nearest first."""
    name = text.rpartition("/")[2].removesuffix(".yaml").removesuffix(".yml")
    by_last = {key.rpartition("/")[2]: key for key in shipped_configs()}
    return [by_last[near] for near in difflib.get_close_matches(name, by_last, 3, 0.6)]


def summary(file: Path) -> str:
    """The first sentence of the comment at the head of a config."""
    lines = file.read_text(encoding="utf-8").splitlines()
    head = " ".join(line.lstrip("# ") for line in lines[: next((i for i, s in enumerate(lines) if s[:1] != "#"), 0)])
    sentence = re.split(r"(?<!\beq)\. ", head, maxsplit=1)[0].rstrip(".")
    return f"{sentence}."


def cost(file: Path) -> str:
    """What the head of a config says that the run costs, in a few words; empty where it does not say."""
    lines = (line.lstrip("# ") for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    _, said, text = " ".join(lines).partition("Cost: ")
    hours = re.search(r"[\d.,]+ A100 or [\d.,]+ H100 hours", text)
    if hours is not None:
        return hours[0]
    return re.split(r"[.,(] |\.$", f"{text} ")[0].strip() if said else ""
