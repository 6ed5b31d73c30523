"""What a run learns from, as it was when the run began: RUN/inputs.json, which is compared when the run goes on.

A teacher that is a run and went on, or data that were encoded again, are others under the same name; and what was moved
is the same under another.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dit_shd.core.errors import UserError
from dit_shd.core.files import write_text
from dit_shd.core.json_files import read_object
from dit_shd.core.run_files import INPUTS, RUN_CONFIG
from dit_shd.core.yaml_files import read_yaml
from dit_shd.data.datasets import Dataset
from dit_shd.data.glance import alike, glance
from dit_shd.distillation.teachers import TEACHER, Teachers, role
from dit_shd.models.quantization import plain_parts
from dit_shd.training.config import TrainConfig
from dit_shd.training.run_folder import is_begun

LIKE = "student.like"
PLACES = ("data.path", "teacher", LIKE)
"""Keys of a config that may differ when a run goes on, as long as teachers and data are the same."""
MAY_DIFFER = (*PLACES, "data.verify")
"""With what may differ then in any case."""
NUMBERS = 64
"""Of each tensor that a fingerprint is of."""
_log = logging.getLogger("dit_shd")


def seen(teachers: Teachers, dataset: Dataset) -> dict[str, Any]:
    """What a run learns from, as inputs.json has it.

    Args:
        teachers: The teachers, by name, not sharded yet.
        dataset: The data.
    """
    weights = {name: fingerprint(teacher) for name, teacher in teachers.items()}
    return {"samples": len(dataset), "glance": glance(dataset), "teachers": weights}


def following(config: TrainConfig) -> TrainConfig:
    """The config whose student is like a teacher that was moved since its run began: like that of the same name now.

    Args:
        config: Of a run, which may be in its folder already.
    """
    file, like = config.run / RUN_CONFIG, config.student.options.get("like")
    if like is None or like in config.teachers.values() or not file.is_file():
        return config
    teacher = read_yaml(file).get("teacher")
    before = teacher if isinstance(teacher, dict) else {TEACHER: teacher}
    name = next((name for name, place in before.items() if place == like), None)
    if name not in config.teachers:
        return config
    options = {**config.student.options, "like": config.teachers[name]}
    return replace(config, student=replace(config.student, options=options))


def check_moved(run: Path, old: Mapping[str, Any], new: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with teachers or data of another place that are others than those that a run began with.

    Args:
        run: The folder, with a checkpoint.
        old: Its config.
        new: The config that it is to go on with.
        now: What is seen.

    Raises:
        UserError: They are others, or nothing says what the run began with.
    """
    moved = [key for key in PLACES if _value(old, key) != _value(new, key)]
    if not moved:
        return
    before = _read(run / INPUTS)
    if before is None or "glance" not in before:
        raise UserError(f"{run}: has no {INPUTS} to compare another {moved[0]} with; give the one that it began with")
    others = [*_changes(before, now)]
    if LIKE in moved and not all(_value(values, LIKE) in _teachers(values) for values in (old, new)):
        others.append(f"{LIKE}: {_value(new, LIKE)}, which is no teacher's, and nothing says what it was")
    if before["teachers"].keys() != now["teachers"].keys():
        others.append(f"teachers: {', '.join(now['teachers'])}, and {', '.join(before['teachers'])} when it began")
    if others:
        words = others[0].partition(";")[0]
        raise UserError(
            f"{run}: {' and '.join(moved)} may name another place, of the same teachers and data; found others there "
            f"({words}); choose another run=FOLDER"
        )


def _teachers(values: Mapping[str, Any]) -> list[object]:
    """The places of the teachers."""
    teacher = values.get("teacher")
    return [*teacher.values()] if isinstance(teacher, dict) else [teacher]


def _value(values: Mapping[str, Any], key: str) -> object:
    part, _, inner = key.partition(".")
    value = values.get(part)
    return value.get(inner) if inner and isinstance(value, dict) else value


def keep(run: Path, now: Mapping[str, Any]) -> None:
    """Write what a new run learns from; warn where that of a run that goes on is another.

    Args:
        run: The folder.
        now: What is seen.
    """
    before = _read(run / INPUTS) if is_begun(run) else None
    if before is None:
        write_text(run / INPUTS, json.dumps(now, indent=1) + "\n")
        return
    for line in _changes(before, now):
        _log.warning("%s", line)


def _read(file: Path) -> dict[str, Any] | None:
    """What a run began with; None where the file is not there, or damaged."""
    values = read_object(file) or {}
    numbers = values.get("glance", [])  # earlier versions kept none
    seen = isinstance(numbers, list) and all(isinstance(number, (int, float)) for number in numbers)
    return values if seen and isinstance(values.get("teachers"), dict) and "samples" in values else None


def fingerprint(model: nn.Module) -> str:
    """A hash of the names and shapes of a model's tensors and of some numbers of each, also of fewer bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        for part in plain_parts(tensor.detach()).values():
            some = part.as_subclass(Tensor).reshape(-1)[:: max(1, part.numel() // NUMBERS)]
            digest.update(some.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name, known in before["teachers"].items():
        if now["teachers"].get(name) != known:
            yield f"{role(name)}: has other weights than those that this run began with; it goes on with these"
    if before["samples"] != now["samples"]:
        yield (
            f"data: {now['samples']} samples, and {before['samples']} when this run began: its steps from here on are "
            "of other samples than they would have been"
        )
    elif not alike(before.get("glance", now["glance"]), now["glance"]):
        yield "data: other samples than those that this run began with, under the same name; it goes on with these"
