"""The file of a bad step: its batch, of all processes and passes, and the diagnosis."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from dit_shd.core.errors import UserError
from dit_shd.core.files import atomic_file, cannot_be_written
from dit_shd.tasks import Batch
from dit_shd.training.batches import Passes
from dit_shd.training.diagnosis import Diagnosis, tensors_of


def write(file: Path, batches: Passes, diagnosis: Diagnosis) -> None:
    """Keep the batch of a step.

    Args:
        file: In a folder that need not exist.
        batches: The passes.
        diagnosis: Goes into the file's metadata.

    Raises:
        UserError: It could not be written.
    """
    tensors = {
        f"{batch.pass_name}/{field}": value.clone(memory_format=torch.contiguous_format)  # the passes share some
        for batch in batches
        for field, value in tensors_of(batch).items()
    }
    settings = {batch.pass_name: _settings(batch) for batch in batches}
    metadata = {"batch": json.dumps({"step": batches[0].step, "settings": settings, **asdict(diagnosis)})}
    try:
        file.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_be_written(file.parent, error) from error
    with atomic_file(file) as stream:
        stream.write(save(tensors, metadata))


def read_batches(file: Path, batch_type: type[Batch]) -> list[Batch]:
    """The passes of a kept batch, as batches of its task.

    Args:
        file: That a training run wrote.
        batch_type: The batch type of the task.

    Raises:
        UserError: No such file, or another.
    """
    try:
        passes: dict[Any, dict[str, Any]] = {}
        with safe_open(file, "pt") as opened:
            known = json.loads((opened.metadata() or {})["batch"])
            for key in opened.keys():  # noqa: SIM118
                name, _, field = key.partition("/")
                values = passes.setdefault(name, {"pass_name": name, "step": known["step"], "data": {}})
                field, _, inner = field.partition("/")
                (values["data"] if inner else values)[inner or field] = opened.get_tensor(key)
        for name, values in passes.items():
            values |= _restored(batch_type, known.get("settings", {}).get(name, {}))
        return [batch_type(**values) for values in passes.values()]
    except (OSError, SafetensorError, LookupError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{file}: wanted a batch kept by a training run ({error})") from error


def _settings(batch: Batch) -> dict[str, dict[str, Any]]:
    """The fields of a batch that are settings, small dataclasses of plain data."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: asdict(value) for name, value in values.items() if is_dataclass(value)}  # type: ignore[arg-type]


def _restored(batch_type: type[Batch], settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Such fields again, of the types that their defaults have."""
    return {f.name: type(f.default)(**settings[f.name]) for f in fields(batch_type) if f.name in settings}
