"""The perplexity of language models that are there on held-out text: students of runs, or any of transformers."""

import json
import logging
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from dit_shd.core.config import REQUIRED, cast, check_ranges, checked, option
from dit_shd.core.devices import current_device
from dit_shd.core.errors import UserError
from dit_shd.core.files import write_text
from dit_shd.core.places import MODEL, Place, find
from dit_shd.core.plugins import Plugin
from dit_shd.core.pretrained import config_of_run
from dit_shd.core.yaml_files import read_yaml
from dit_shd.data.datasets import DATASETS
from dit_shd.data.datasets.text import Text
from dit_shd.data.tokenizer import has_tokenizer
from dit_shd.evaluation import results
from dit_shd.models import loading
from dit_shd.tasks.language_modeling import LanguageModeling, TextEvaluation

_log = logging.getLogger("dit_shd")
SEED = re.compile(r"[/_-]?seed_?\d+$")
"""The end of the name of a run; runs of one name before it differ in their seed."""
Figures = dict[str, float]


@dataclass(frozen=True)
class PerplexityConfig:
    """Perplexity of models on held-out text."""

    models: list[Place] = option(REQUIRED, f"each {MODEL}")
    data: Plugin | None = option(
        None,
        "text: {name: text, path: ..., split: all or validation, tokenizer: empty for the first model's own}; empty: "
        "what the models' runs held out",
    )
    separate: bool | None = option(None, "packed documents do not attend to each other; empty: as the runs have it")
    sequences: int | None = option(None, "of the text, evenly spread; empty: all", range=(1, 1e9))
    batch_size: int = option(16, "sequences of one forward", range=(1, 1e6))
    out: Path | None = option(None, "a JSON file for the figures; empty for none")


def perplexities(config: PerplexityConfig) -> dict[str, Figures]:
    """Measure, and write the figures where the config says.

    Args:
        config: The config of the command.

    Returns:
        The figures of each model by its name.

    Raises:
        UserError: No such model, no language model, data without a split, or models of runs that held out different
            texts or packed them in different ways.
    """
    config = checked(config, "perplexity")
    check_ranges(config)
    if config.out is not None:
        results.new_file(config.out)
    models = named(config.models)
    if config.data is not None and config.data.name == "text" and "split" not in config.data.options:
        raise UserError(
            "data: wanted its split, found none, which would be what training learns from; say split: validation of a "
            "text that a run learned from, split: all of any other"
        )
    data = config.data and _with_tokenizer(config.data, config.models[0])
    plugins = {place: data or _held_out(place) for place in config.models}
    different = [place for place in plugins if plugins[place] != plugins[config.models[0]]]
    if different:
        raise UserError(
            f"models: {config.models[0]} and {different[0]} are of runs on other data or other splits of it, so their "
            "figures are not comparable; say data={name: text, path: ..., split: validation}"
        )
    _check_one_separation(config)
    data = DATASETS.build(plugins[config.models[0]], "data")
    if not isinstance(data, Text):
        raise UserError(f"data: wanted text, found {', '.join(sorted(data.fields))}")
    figures = {name: _measured(place, data, config) for name, place in models.items()}
    if config.out is not None:
        write_text(config.out, json.dumps(figures, indent=1) + "\n", results.REMEDY)
    return figures


def over_seeds(figures: Mapping[str, Figures]) -> dict[str, tuple[int, Figures, Figures]]:
    """Runs whose names differ in their seed alone: their number, and mean and standard deviation of their figures.

    Args:
        figures: Model's name -> its figures.
    """
    groups: dict[str, list[Figures]] = {}
    for name, row in figures.items():
        groups.setdefault(SEED.sub("", name), []).append(row)
    summary: dict[str, tuple[int, Figures, Figures]] = {}
    for name, rows in groups.items():
        keys = [key for key in rows[0] if all(key in row for row in rows)]
        means = {key: statistics.fmean(row[key] for row in rows) for key in keys}
        spreads = {key: statistics.stdev([row[key] for row in rows]) for key in keys} if len(rows) > 1 else {}
        summary[name] = (len(rows), means, spreads)
    return summary


def _with_tokenizer(data: Plugin, place: str) -> Plugin:
    """Data that name no tokenizer, by that of a model if it has one."""
    if data.name != "text" or {"tokenizer", "vocabulary"} & data.options.keys():
        return data
    if not has_tokenizer(place):
        if config_of_run(place) is None:
            _log.warning("data: %s has no tokenizer.json, so the text is read as bytes; data.tokenizer=FOLDER", place)
        return data
    return replace(data, options={**data.options, "tokenizer": place})


def _held_out(place: str) -> Plugin:
    """The text that a run held out.

    Raises:
        UserError: Nothing says it, or it learned from all of its text.
    """
    file = config_of_run(place)
    data = None if file is None else read_yaml(file).get("data")
    if not isinstance(data, Mapping) or data.get("name") != "text":
        raise UserError(
            f"data: wanted the text to measure on, found none, and no run of {place} says it; "
            "data='{name: text, path: FILE, tokenizer: FOLDER, split: all}'"
        )
    plugin = cast(Plugin, dict(data), f"{file}: data")
    learned = plugin.options.get("split", "train")
    if learned != "train":
        raise UserError(
            f"data: {place} learned from split={learned}, so it held out nothing; say data="
            "'{name: text, path: FILE, split: all}'"
        )
    return replace(plugin, options={**plugin.options, "split": "validation"})


def named(places: Sequence[str]) -> dict[str, str]:
    """Models by their names: of their folders, or as they were given where those could be taken for another's seeds."""
    paths = [find(place, "model", "MODELS") for place in places]
    wholes = [path.resolve().as_posix() if isinstance(path, Path) else place for path, place in zip(paths, places)]
    names = [Path(w).name if isinstance(path, Path) else w for path, w in zip(paths, wholes)]
    groups = [(SEED.sub("", name), SEED.sub("", whole)) for name, whole in zip(names, wholes)]
    clear = [bool(short) and len({w for s, w in groups if s == short}) == 1 for short, _ in groups]
    return {
        name if sure and names.count(name) == 1 else place.rstrip("/"): place
        for name, sure, place in zip(names, clear, places)
    }


def _separate(place: str, config: PerplexityConfig) -> bool:
    """Whether packed documents are kept apart: as the command says, else as the model's run has it."""
    file = config_of_run(place)
    task = None if file is None else read_yaml(file).get("task")
    known = task.get("separate", True) if isinstance(task, Mapping) else True
    return config.separate if config.separate is not None else bool(known)


def _check_one_separation(config: PerplexityConfig) -> None:
    """Refuse models of which some see the document before and others do not: their figures are of other contexts."""
    apart = {place: _separate(place, config) for place in config.models}
    different = [place for place in apart if apart[place] != apart[config.models[0]]]
    if different:
        yes, no = sorted([config.models[0], different[0]], key=lambda place: not apart[place])
        raise UserError(
            f"models: packed documents are kept apart of {yes} and not of {no}, as their runs have it, so "
            "that figures are not comparable; say separate=true or separate=false"
        )


def _measured(place: str, data: Text, config: PerplexityConfig) -> Figures:
    model: nn.Module = loading.load(place)
    evaluation = TextEvaluation(config.sequences, config.batch_size)
    task = LanguageModeling(_separate(place, config), evaluation=evaluation)
    task.check_data(data)
    task.use(data, model)
    task.check(place, model)
    for remark in task.remarks(model) if place == config.models[0] else ():  # they are of the text
        _log.warning("%s", remark)
    nn.Module.to(model, current_device())
    return task.perplexity(model.eval(), data)
