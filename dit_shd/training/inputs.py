"""What a run learns from, as it was when the run began: RUN/inputs.json, which is compared when the run goes on.

A teacher that is a run and went on, or data that were encoded again, are others under the same name.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dit_shd.core.files import write_text
from dit_shd.core.json_files import read_object
from dit_shd.data.datasets import Dataset
from dit_shd.data.glance import alike, glance
from dit_shd.distillation.teachers import Teachers, role
from dit_shd.training.run_folder import is_begun

FILE = "inputs.json"
NUMBERS = 64
"""Of each tensor that a fingerprint is of."""
_log = logging.getLogger("dit_shd")


def keep(run: Path, teachers: Teachers, dataset: Dataset) -> None:
    """Write what a new run learns from; warn where that of a run that goes on is another.

    Args:
        run: The folder.
        teachers: The teachers, by name, not sharded yet.
        dataset: The data.
    """
    weights = {name: fingerprint(teacher) for name, teacher in teachers.items()}
    now = {"samples": len(dataset), "glance": glance(dataset), "teachers": weights}
    before = _read(run / FILE) if is_begun(run) else None
    if before is None:
        write_text(run / FILE, json.dumps(now, indent=1) + "\n")
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
    """A hash of the names and shapes of a model's tensors and of some numbers of each; of fewer bits names alone."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        if type(tensor) is Tensor and tensor.numel():
            some = tensor.detach().reshape(-1)[:: max(1, tensor.numel() // NUMBERS)]
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
