"""What a study reads: references, prompts, models, teachers and data; they are there, or its shared work makes them."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dit_shd.core.errors import UserError
from dit_shd.core.places import expanded, instead
from dit_shd.core.shipped_configs import find_shipped
from dit_shd.core.yaml_files import read_yaml
from dit_shd.data.datasets import DATASETS
from dit_shd.study.design import Cell, Study

YAML = (".yaml", ".yml")
HERE = "paths of a study, all but config, count from the folder you are in"


def check_places(study: Study, cells: Sequence[Cell], folder: Path) -> None:
    """Refuse a study that reads what is not there, and what neither its shared work nor another cell makes.

    Args:
        study: The study.
        cells: Those that are left.
        folder: Of all cells.

    Raises:
        UserError: Naming the first such path.
    """
    made = [folder.resolve()]
    for line in study.prepare:
        words = shlex.split(line)
        for word in words:
            if word.endswith(YAML) and "=" not in word and not _is_there(word, made) and find_shipped(word) is None:
                raise UserError(f"study.prepare: '{line}': found no {word} ({instead(Path(expanded(word)))}); {HERE}")
        outputs = outputs_of(words)
        if not outputs:
            return  # it makes something, and where is not known
        made += [output.resolve() for output in outputs]
    for where, text in _places(study, cells):
        if not text.startswith(("hub:", "asset:")) and not _is_there(text, made):
            raise UserError(f"study: {where}: found nothing at '{text}' ({instead(Path(expanded(text)))}); {HERE}")


def outputs_of(words: Sequence[str]) -> list[Path]:
    """Where a command of dit-shd puts what it makes: out=, of a training run=, among its words or in its config."""
    keys = ("out", "run") if "train" in words else ("out",)
    given = dict(word.split("=", 1) for word in words if "=" in word)
    files = [Path(expanded(word)) for word in words if word.endswith(YAML) and "=" not in word]
    configs = [read_yaml(file) for file in files if file.is_file()]
    return [Path(expanded(str(one[key]))) for one in (*configs, given) for key in keys if one.get(key)]


def _is_there(text: str, made: Sequence[Path]) -> bool:
    """Whether something is at a place, or will be: at, in or beside one that is made."""
    path = Path(expanded(text))
    whole = path.resolve()
    return path.exists() or any(x == whole or x in whole.parents or _is_beside(whole, x) for x in made)


def _is_beside(path: Path, place: Path) -> bool:
    """Whether a file has the name of another and one more ending: `data.prompts.txt` of `data`, `x.json` of `x.npz`."""
    return path.parent == place.parent and path.name.startswith(f"{place.stem}.")


def _places(study: Study, cells: Sequence[Cell]) -> Iterator[tuple[str, str]]:
    """Where in the study a place is named, and the place."""
    for name, evaluator in study.evaluators.items():
        if not evaluator.program and evaluator.reference.partition(":")[0] not in DATASETS.names():
            yield f"evaluators.{name}.reference", evaluator.reference
    if isinstance(prompts := study.sampling.get("prompts"), str):
        yield "sampling.prompts", prompts
    for cell in cells:
        if cell.model:
            yield f"models.{cell.variant}", cell.model
        teacher, data = cell.training.get("teacher"), cell.training.get("data")
        teachers = teacher if isinstance(teacher, Mapping) else {"": teacher}
        for name, text in teachers.items():
            if isinstance(text, str):
                yield f"{cell.variant}: teacher{'.' * bool(name)}{name}", text
        if isinstance(data, Mapping) and isinstance(data.get("path"), str) and data.get("name") in DATASETS.names():
            yield f"{cell.variant}: data.path", data["path"]
