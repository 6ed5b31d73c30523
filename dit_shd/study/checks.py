"""What is refused before a cell runs and takes the commands' own configs: training, sampling, the deciding figure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dit_shd.core.config import check_ranges, make, resolve
from dit_shd.core.errors import UserError
from dit_shd.data.datasets import DATASETS
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.distillation.losses import LOSSES
from dit_shd.evaluation.features import FEATURES
from dit_shd.evaluation.metrics import FIGURES, METRICS
from dit_shd.study.design import Cell, Evaluator, Study
from dit_shd.tasks import TASKS
from dit_shd.training.config import TrainConfig

OF_INCEPTION = ("FID", "sFID", "KID", "IS")
"""Figures that have this name with the 2015 Inception alone."""


def check_cells(study: Study, cells: Sequence[Cell]) -> None:
    """Refuse what the commands of a cell would.

    Args:
        study: The study.
        cells: All of its cells; those of the first seed are looked at.

    Raises:
        UserError: Keys or values that training, sampling or scoring refuses, two variants that are one run, however
            their settings are written, cells that would have no figure, or a deciding one that no evaluator gives.
    """
    known: list[tuple[str, dict[str, Any]]] = []
    for cell in cells:
        if cell.model or cell.seed != study.seeds[0]:
            continue
        config = _resolved(cell)
        for other, same in known:
            if same == config:
                raise UserError(f"study: {other} and {cell.variant} are one run, with the same config; wanted others")
        known.append((cell.variant, config))
    _check_scored(study, dict(known))
    if study.evaluators:
        _check_sampling(study)
    for name, evaluator in study.evaluators.items():
        FEATURES.filled(evaluator.features, f"study.evaluators.{name}.features")
        for metric in evaluator.metrics:
            METRICS.filled(metric, f"study.evaluators.{name}.metrics.{metric.name}")
    _check_figure(study)


def _resolved(cell: Cell) -> dict[str, Any]:
    """A cell's training with types and defaults of every key."""
    try:
        config = make(TrainConfig, dict(cell.training))
        check_ranges(config)
        data, task = DATASETS.filled(config.data, "data"), TASKS.filled(config.task, "task")
        losses = [LOSSES.filled(p, f"losses.{i}", {"seed": config.seed}) for i, p in enumerate(config.losses)]
    except UserError as error:
        raise UserError(f"study: {cell.variant}: {error}") from error
    return resolve(replace(config, data=data, task=task, losses=losses))


def _check_scored(study: Study, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse cells that end without a figure: nothing could be said of them."""
    if study.models and not study.evaluators:
        raise UserError(
            f"study.models: {next(iter(study.models))} is scored by evaluators, and the study has none; name one, or "
            "leave the models out"
        )
    of_training = study.figure.startswith("training/")
    for variant, config in configs.items():
        if (of_training or not study.evaluators) and not 0 < config["validate_every"] <= config["steps"]:
            raise UserError(
                f"study: {variant} ends without a {study.figure or 'figure'}; wanted "
                f"{'' if of_training else 'evaluators, or '}validate_every from 1 to steps ({config['steps']}) in its "
                f"training, found {config['validate_every']}"
            )


def _check_sampling(study: Study) -> None:
    where = "study.sampling"
    if "run" in study.sampling:
        raise UserError(f"{where}.run: is each cell's own; a model that is sampled as it is stands under study.models")
    try:
        make(SampleConfig, {"seed": study.seeds[0], **study.sampling}, where).check()
    except UserError as error:
        raise error if str(error).startswith(where) else UserError(f"{where}.{error}") from error


def _check_figure(study: Study) -> None:
    """Refuse a figure that no evaluator gives, where that can be told: not of programs and plug-ins of others."""
    figure, _, by = study.figure.partition(" by ")
    evaluators = [e for name, e in study.evaluators.items() if by in ("", name)]
    named = [plugin.name for e in evaluators for plugin in (e.features, *e.metrics)]
    foreign = any(e.program for e in evaluators) or any("." in name for name in named)
    word = figure.partition("(")[0].strip()
    metric = FIGURES.get(word.lower(), word.lower())
    if not study.evaluators or metric not in METRICS.names():
        return
    givers = [name for name, e in study.evaluators.items() if not e.program and _gives(e, metric, figure)]
    alike = {json.dumps(study.evaluators[name].features.as_value()) for name in givers}
    if not by and len(givers) > 1 and ("(" not in figure or len(alike) == 1):
        raise UserError(
            f"study.figure: {figure} is given by {' and '.join(givers)}; wanted one of "
            + ", ".join(f"'{figure} by {name}'" for name in givers)
        )
    if by and givers == [by] and not any(e.program for e in study.evaluators.values()):
        raise UserError(f"study.figure: {figure} is given by {by} alone, so that its name is '{figure}'")
    if not foreign and not any(_gives(evaluator, metric, figure) for evaluator in evaluators):
        words = [
            f"{name}: {e.features.name} with {[m.name for m in e.metrics]}" for name, e in study.evaluators.items()
        ]
        raise UserError(
            f"study.figure: wanted a figure of an evaluator (FID of inception, FD(digits) of digits), found "
            f"{study.figure} beside {'; '.join(words)}"
        )


def _gives(evaluator: Evaluator, metric: str, figure: str) -> bool:
    """Whether the figure may be of this evaluator; a network's title begins with its name."""
    word, _, title = figure.partition("(")
    network = evaluator.features.name.replace("_", "-")
    fits = title.replace("_", "-").startswith(network) if title else word not in OF_INCEPTION or network == "inception"
    return fits and metric in [plugin.name for plugin in evaluator.metrics]
