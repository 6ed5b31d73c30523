"""`from=RUN`: a new run whose student begins with the weights of another run's student, or of any model.

What is taken, by the names of tensors, is logged and kept in from.json; it also has the licence that is inherited.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dit_shd.core.errors import UserError
from dit_shd.core.files import write_text
from dit_shd.core.json_files import read_object
from dit_shd.core.places import find
from dit_shd.core.run_files import BEGUN_FROM
from dit_shd.evaluation.accuracy import all_misnamed, misnamed
from dit_shd.models import loading
from dit_shd.models.prediction import PREDICTION, prediction_of
from dit_shd.models.provenance import Provenance, provenance
from dit_shd.models.settings import differing_settings, in_words
from dit_shd.models.shape import differing_heads
from dit_shd.tasks import Task
from dit_shd.training.inputs import fingerprint

LEAST = 0.5
"""Share of the student's parameters that must come from the other model."""
_log = logging.getLogger("dit_shd")


@dataclass(frozen=True)
class WarmStart:
    """The weights that a student begins with, and where they are from."""

    source: str
    taken: int
    """Parameters that were taken."""
    total: int
    """Parameters of the student."""
    new: tuple[str, ...]
    """Tensors of the student that the other model lacks, or has in another shape; they begin at random."""
    origin: Provenance
    settings: str = ""
    """What the student's config says otherwise of how weights are used, in words."""
    weights: str = ""
    """The fingerprint of the other model, as inputs.json has those of teachers."""

    def line(self) -> str:
        """What was taken, in one line."""
        left = f"; at random: {', '.join(self.new[:4])}{', ...' if len(self.new) > 4 else ''}" if self.new else ""
        other = f"; they mean something else under other settings ({self.settings})" if self.settings else ""
        return f"from {self.source}: {self.taken:,} of {self.total:,} parameters taken{left}{other}"

    def write(self, run: Path) -> None:
        """Keep it in a run folder."""
        write_text(run / BEGUN_FROM, json.dumps(asdict(self), indent=1) + "\n")


def take_weights(student: nn.Module, source: str, task: Task[Any] | None = None) -> WarmStart:
    """Copy the tensors of another model that have the names and shapes of the student's.

    Args:
        student: Whose weights are replaced.
        source: A run folder, a model folder or whatever else names a model.
        task: What the student is to learn, with its data; without it, tokens and classes are not compared.

    Raises:
        UserError: There is no such model, most of the student's parameters are not in it, or its heads or tokens are
            others.
    """
    find(source, "model", "from")  # whose error names the key
    other_model = loading.load(source)
    other = other_model.state_dict()
    weights = student.state_dict()
    fits = {
        name: other[name] for name, tensor in weights.items() if name in other and other[name].shape == tensor.shape
    }
    new = tuple(name for name in weights if name not in fits)
    taken, total = sum(map(torch.numel, fits.values())), sum(map(torch.numel, weights.values()))
    if taken < LEAST * total:
        differing = next((name for name in new if name in other), None)
        reason = (
            f"{differing} is {list(weights[differing].shape)} here and {list(other[differing].shape)} there"
            if differing
            else f"it has no {new[0]}"
        )
        raise UserError(
            f"from: {source} holds {taken:,} of the student's {total:,} parameters in the same shape ({reason}); give "
            "the student its sizes (student=...), or let a smaller one begin with initialisation.weights=teacher"
        )
    _check_heads(student, other_model, source)
    _check_prediction(student, other_model, source)
    if task is not None:
        task.check_start(source, other_model)
        _check_classes(student, other_model, source, task.dataset.class_names)
    student.load_state_dict({**weights, **fits})
    settings = in_words(differing_settings(student, other_model))
    return WarmStart(source, taken, total, new, provenance(source), settings, fingerprint(other_model))


def _check_heads(student: nn.Module, other: nn.Module, source: str) -> None:
    """Refuse weights of the same shapes that another number of heads divides otherwise."""
    differing = differing_heads(student, other)
    if differing is not None:
        what, here, there = differing
        raise UserError(
            f"from: {what} is {there} in {source} and {here} in the student: weights of the same shapes would be other "
            "maps; give it as many, or let it begin with initialisation.weights=teacher"
        )


def _check_prediction(student: nn.Module, other: nn.Module, source: str) -> None:
    """Warn of weights of a model that predicts something else, or is given time otherwise."""
    here, there = prediction_of(student), prediction_of(other)
    if here != there:
        _log.warning(
            "from: the student predicts %s, and %s %s: it begins with weights that mean something else; "
            "student.%s=%s goes on with what they learned",
            here,
            source,
            there,
            PREDICTION,
            there,
        )


def _check_classes(student: nn.Module, other: nn.Module, source: str, names: Sequence[str] | None) -> None:
    """Warn of weights that were learned with other classes of the same number."""
    new, old = (getattr(model, "config", {}) for model in (student, other))
    known = old.get("class_names")
    if known is None or names is None or new.get("num_classes") != old.get("num_classes"):
        return
    differs = misnamed(known, names) or all_misnamed(known, names)
    if differs is not None:
        _log.warning("from: the data's classes are others than %s knows: %s", source, differs)


def read_origin(run: Path) -> Provenance | None:
    """What is behind the weights that a run began with; None where it began without any.

    Raises:
        UserError: Its file is damaged, so that the licence of the weights is not known.
    """
    if not (run / BEGUN_FROM).exists():
        return None
    values = (read_object(run / BEGUN_FROM) or {}).get("origin")
    known, lists = {field.name for field in fields(Provenance)}, {}
    if isinstance(values, dict) and values.keys() <= known:
        lists = {key: value for key, value in values.items() if key != "license"}
        texts = [text for value in lists.values() if isinstance(value, list) for text in value]
        whole = all(isinstance(value, list) for value in lists.values()) and all(isinstance(one, str) for one in texts)
        if whole and isinstance(values.get("license"), str | None):
            return Provenance(values.get("license"), **{key: tuple(value) for key, value in lists.items()})
    raise UserError(
        f"{run / BEGUN_FROM}: wanted the origin of the weights that the run began with, found a damaged file"
    )
