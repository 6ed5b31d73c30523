"""Sizes of a student that training takes from the data (classes, tokens), for a dry run, whose data may not be here."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from dit_shd.data.datasets import DATASETS
from dit_shd.distillation.teachers import role
from dit_shd.models.families import FAMILIES
from dit_shd.models.language_model import text_config
from dit_shd.training.config import TrainConfig, sized

SIZES = {"num_classes": "classes", "vocab_size": "tokens"}
"""Keywords of families that follow from the data, and what each counts."""


def data_sizes(config: TrainConfig) -> dict[str, int]:
    """What of the data a model has to know, where they are here or their config says it, and the student's does not.

    Args:
        config: Of the run.

    Raises:
        UserError: Data that are here and cannot be read.
    """
    data = DATASETS.filled(config.data, "data")
    return dict(DATASETS.find(data.name).sizes_of(**data.options)) if _missing(config) else {}


def with_sizes(
    config: TrainConfig, keywords: Mapping[str, Any], teachers: Mapping[str, nn.Module]
) -> tuple[TrainConfig, Sequence[str]]:
    """The config whose student has the sizes that it leaves to the data, or else those of a teacher; and that in words.

    Args:
        config: Of the run.
        keywords: Of families, as they follow from task and data; sizes among them are the data's.
        teachers: By name, with weights or without.
    """
    sizes, lines = dict(keywords), list[str]()
    options = config.student.options
    for key in _missing(config):
        if "source" in options or key in (options.get("config") or {}):
            continue  # it has a size already, which holds but where the data need more
        known = {name: size for name, model in teachers.items() if (size := _size(model, key)) is not None}
        if key in keywords:
            lines.append(f"The student has {keywords[key]:,} {SIZES[key]}, as the data have.")
        elif known:
            name, sizes[key] = next(iter(known.items()))
            count = f"{sizes[key]:,} {SIZES[key]}"
            lines.append(f"The data are not here; the student was given the {count} of the {role(name)}.")
        else:
            lines.append(f"The data are not here; {key} of the student is the default of its family.")
    return sized(config, sizes), lines


def _missing(config: TrainConfig) -> list[str]:
    """Sizes that the student's family has as keywords and its config does not name."""
    known = inspect.signature(FAMILIES.find(config.student.name)).parameters
    return [key for key in SIZES if key in known and key not in config.student.options]


def _size(model: nn.Module, key: str) -> int | None:
    """A size of a model by its config."""
    size = getattr(text_config(model) or getattr(model, "config", None), key, None)
    return size if isinstance(size, int) else None
