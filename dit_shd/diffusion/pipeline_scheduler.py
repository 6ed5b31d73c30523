"""What the scheduler of a class-conditional pipeline says of its transformer: which noise it learned, and predicts."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dit_shd.core.errors import UserError
from dit_shd.core.json_files import read_object
from dit_shd.core.places import HubName, find
from dit_shd.core.pretrained import folder_of_weights, model_folder
from dit_shd.data.pipeline_record import SCHEDULER
from dit_shd.models import loading
from dit_shd.models.prediction import NOISE, prediction_of

LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
"""The betas of class-conditional models' noise over 1,000 steps, in diffusers' terms; its defaults for any number."""
STEPS = "num_train_timesteps"


def scheduler_of(place: str) -> dict[str, Any]:
    """The config of the scheduler of a pipeline; empty for models that are of none, or that say nothing of it.

    Args:
        place: The name of a model; empty for none.

    Raises:
        UserError: There is no such model, or its scheduler's config is damaged.
    """
    source = find(place, "model") if place else None
    if isinstance(source, HubName):
        file = source.file(SCHEDULER)
    else:
        model = (folder_of_weights(source) or model_folder(source)) if isinstance(source, Path) else None
        file = None if model is None or model.name != "transformer" else model.absolute().parent / SCHEDULER
    if file is None or not file.exists():
        return {}
    content = read_object(file)
    if content is None:
        raise UserError(f"{file}: wanted the JSON object of a scheduler, found something else")
    return content


def check_scheduler(place: str, model: nn.Module) -> None:
    """Refuse a pipeline whose scheduler says another noise or prediction than class-conditional models have here.

    Args:
        place: The pipeline, or its transformer.
        model: The transformer.

    Raises:
        UserError: Naming the scheduler's key.
    """
    scheduler = scheduler_of(place)
    kind, prediction = str(scheduler.get("_class_name", "")), prediction_of(model)
    if scheduler and ("FlowMatch" in kind) != (prediction != NOISE):
        raise UserError(f"{place}: its scheduler is a {kind}, and its transformer predicts {prediction}, it says")
    if prediction != NOISE:
        return
    target = scheduler.get("prediction_type", "epsilon")
    if target != "epsilon":
        raise UserError(
            f"{place}: its scheduler says prediction_type: {target}; wanted epsilon, of class-conditional models"
        )
    defaults: dict[str, Any] = {**LINEAR, "trained_betas": None, "rescale_betas_zero_snr": False}
    steps = scheduler.get(STEPS, 1000)
    if type(steps) is not int or steps < 1:
        raise UserError(f"{place}: its scheduler says {STEPS}: {steps}; wanted a whole number of 1 or more")
    scale = 1000 / steps
    for key, default in defaults.items():
        given, value = scheduler.get(key, default), scale * default if isinstance(default, float) else default
        alike = math.isclose(given, value) if isinstance(given, float) and isinstance(value, float) else given == value
        if not alike:
            raise UserError(
                f"{place}: its scheduler says {key}: {given}; class-conditional models have "
                f"{'betas by their schedule' if value is None else value} here"
            )


def check_teacher(place: str, teacher: nn.Module, task: Mapping[str, Any]) -> None:
    """Refuse a teacher of a pipeline that learned another noise than the task adds.

    Args:
        place: The pipeline, or its transformer.
        teacher: The transformer; of one that is not class-conditional nothing is said here.
        task: The options of the task.

    Raises:
        UserError: Naming the scheduler's key, or the task's.
    """
    scheduler = scheduler_of(place)
    if not scheduler or loading.why_not_conditional(teacher) is not None:
        return
    check_scheduler(place, teacher)
    steps, wanted = scheduler.get(STEPS), task.get("timesteps")
    if prediction_of(teacher) == NOISE and None not in (steps, wanted) and steps != wanted:
        raise UserError(f"task.timesteps: wanted the {steps} that the scheduler of {place} says, found {wanted}")
