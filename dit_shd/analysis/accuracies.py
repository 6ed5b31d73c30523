"""Top-1 and top-5 of image classifiers that are there: the students of a run, or any one model."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from dit_shd.core.config import cast, check_ranges, checked, option
from dit_shd.core.devices import current_device
from dit_shd.core.errors import UserError
from dit_shd.core.files import write_text
from dit_shd.core.places import MODEL, Place, find
from dit_shd.core.plugins import Plugin
from dit_shd.core.pretrained import config_of_run
from dit_shd.core.run_files import STUDENT
from dit_shd.core.yaml_files import read_yaml
from dit_shd.data.augmentation import EvaluationTransform
from dit_shd.data.class_order import in_another_order, other_orders
from dit_shd.data.datasets import DATASETS, Dataset
from dit_shd.evaluation import results
from dit_shd.evaluation.accuracy import Accuracy, all_misnamed, measure_accuracy, misnamed, of_learned
from dit_shd.models import loading
from dit_shd.models.classifier import image_input, known_classes

_log = logging.getLogger("dit_shd")


@dataclass(frozen=True)
class AccuracyConfig:
    """Accuracy of a model, or of all students of a run."""

    model: Place = option("", MODEL)
    data: Plugin | None = option(
        None, "images: {name: images, path: ..., split: validation}; empty: what the run's training evaluates on"
    )
    crop: float | None = option(None, "share of the smaller side that is taken; empty: the model's", range=(0.05, 1))
    batch_size: int = option(64, "images of one forward", range=(1, 1e6))
    out: Path | None = option(None, "a JSON file for the figures; empty for none")


def accuracies(config: AccuracyConfig) -> dict[str, Accuracy]:
    """Measure, and write the figures where the config says.

    Args:
        config: The config of the command.

    Returns:
        The accuracy of each model by its name.

    Raises:
        UserError: No such model, none that classifies images, or data of other classes.
    """
    config = checked(config, "accuracy")
    check_ranges(config)
    if not config.model:
        raise UserError(f"accuracy: model: wanted {MODEL}, found none")
    if config.out is not None:
        results.new_file(config.out)
    students = _students(config.model)
    config = _completed(config)
    assert config.data is not None, "it is completed"
    dataset = DATASETS.build(config.data, "data")
    if "images" not in dataset.fields:
        raise UserError(f"data: wanted images, found {', '.join(sorted(dataset.fields))}")
    if _is_learned(config.data, config.model):
        _log.warning("%s", of_learned("data"))
    measured = {name: _accuracy(name, source, dataset, config) for name, source in students.items()}
    if config.out is not None:
        figures = {name: accuracy.figures() for name, accuracy in measured.items()}
        write_text(config.out, json.dumps(figures, indent=1) + "\n", results.REMEDY)
    return measured


def _students(model: str) -> dict[str, str]:
    """The students of a run by name; of anything else itself."""
    place = find(model, "model", "MODEL")
    if not isinstance(place, Path):
        return {model: model}
    inside = sorted(folder for folder in place.glob(f"{STUDENT}*") if (folder / "config.json").is_file())
    return {folder.name: str(folder) for folder in inside} or {place.name: model}


def _completed(config: AccuracyConfig) -> AccuracyConfig:
    """The config with what the run of the model evaluates on, where it says nothing else.

    Raises:
        UserError: Nothing says it.
    """
    if config.data is not None:
        return config
    file = config_of_run(config.model)
    task = None if file is None else read_yaml(file).get("task")
    evaluation = task.get("evaluation") if isinstance(task, Mapping) else None
    if not isinstance(evaluation, Mapping) or evaluation.get("data") is None:
        raise UserError(
            f"data: wanted the images to measure on, found none, and no run of {config.model} says them; "
            "data='{name: images, path: FOLDER, split: validation}'"
        )
    where = f"{file}: task.evaluation"
    data, crop = cast(Plugin, evaluation["data"], f"{where}.data"), evaluation.get("crop")
    return replace(config, data=data, crop=crop if config.crop is None else config.crop)


def _is_learned(data: Plugin, model: str) -> bool:
    """Whether images are those that the run of a model learned from, as far as its config says."""
    file = config_of_run(model)
    learned = None if file is None else read_yaml(file).get("data")
    if not isinstance(learned, Mapping) or learned.get("name") != data.name:
        return False
    try:
        return _located(cast(Plugin, dict(learned), f"{file}: data")) == _located(data)
    except UserError:  # a key that there no longer is
        return False


def _located(data: Plugin) -> dict[str, Any]:
    """The options of a dataset with every default, and its path whatever the working folder and links."""
    options = DATASETS.filled(data, "data").options
    return {key: Path(value).resolve() if key == "path" and value else value for key, value in options.items()}


def _accuracy(name: str, source: str, dataset: Dataset, config: AccuracyConfig) -> Accuracy:
    model: nn.Module = loading.load(source)
    model.eval()
    taken, classes = image_input(name, model), known_classes(name, model)
    if classes != dataset.classes:
        raise UserError(f"{name}: knows {classes} classes, the data has {dataset.classes}")
    known = getattr(model, "config", {}).get("class_names")
    other, unlike = misnamed(known, dataset.class_names), all_misnamed(known, dataset.class_names)
    for program, places in other_orders(dataset.class_names if known is None else None).items():
        words = in_another_order(dataset.class_names, places)
        _log.warning("%s: has no class names; if it learned classes in the order of %s, %s", name, program, words)
    if unlike is not None:
        _log.warning("%s: the data's classes are others than it knows: %s", name, unlike)
    if other is not None:
        raise UserError(f"{name}: the data's classes are others than it knows: {other}; wanted the same, in one order")
    device, transform = current_device(), EvaluationTransform(taken, config.crop)
    nn.Module.to(model, device)
    return measure_accuracy(model, dataset, transform, range(len(dataset)), device, config.batch_size)
