"""Captures and forwards of one image, for counting: shapes alone, or random tensors where a model has to be run."""

from functools import lru_cache
from typing import Any

import torch
from torch import nn

from dit_shd.attention.capture import Captures
from dit_shd.attention.recording import discovery
from dit_shd.attention.recording.attach import capture
from dit_shd.core.dtensor import is_sharded
from dit_shd.core.errors import UserError
from dit_shd.distillation import recording
from dit_shd.distillation.records import Forward, Reads
from dit_shd.models.batch_norms import evaluated_norms
from dit_shd.models.offload import device_of
from dit_shd.profiling import meta
from dit_shd.tasks import Batch, Task

MOST_BUILT = 300_000_000
"""Parameters of a model that is built with random weights to see what its attention is."""


Named = tuple[str, ...] | None
"""Attention layers by name; None for all self-attention."""


def captures_of(
    model: nn.Module, task: Task[Any], pass_name: str = "plain", layers: Named = None, beside: nn.Module | None = None
) -> Captures:
    """The captures of one image's forward: shapes only, or real tensors for attention of other packages.

    Args:
        model: Perhaps without memory. One that is too large to be built has shapes alone: no W^O, and the rows of image
            and text together where attention is joint.
        task: What is learned.
        pass_name: The pass name of the task.
        layers: Which attention layers.
        beside: Another model whose captures these are compared with: where one has shapes alone, both have.
    """
    if discovery.own_layers(model):
        return _shapes(meta.ModelSpec.of(model), task, pass_name)
    if any(_is_empty(each) and _is_large(each) for each in (model, beside) if each is not None):
        return _shapes(meta.ModelSpec.of(model), task, pass_name, layers)
    if _is_empty(model):
        return _random_captures(meta.ModelSpec.of(model), task, pass_name, layers)
    return _captured(model, task, pass_name, layers)


def _is_empty(model: nn.Module) -> bool:
    """Whether a model's weights are not here as a whole."""
    return is_sharded(model) or any(parameter.is_meta for parameter in model.parameters())


def _is_large(model: nn.Module) -> bool:
    return sum(parameter.numel() for parameter in model.parameters()) > MOST_BUILT


@lru_cache(maxsize=64)
def _random_captures(spec: meta.ModelSpec, task: Task[Any], pass_name: str, layers: Named) -> Captures:
    return _captured(spec.build(), task, pass_name, layers)


@lru_cache(maxsize=64)
def _shapes(spec: meta.ModelSpec, task: Task[Any], pass_name: str, layers: Named = None) -> Captures:
    return _captured(spec.skeleton(), task, pass_name, layers)


def _captured(model: nn.Module, task: Task[Any], pass_name: str, layers: Named = None) -> Captures:
    with torch.no_grad(), meta.without_autocast(), evaluated_norms(model), capture(model, layers) as captures:
        task.predict(model, example(task, pass_name, model, device_of(model)))
        return dict(captures)


def forward_of(
    model: nn.Module, task: Task[Any], pass_name: str, read: frozenset[Reads], layers: Named = None
) -> tuple[Forward, Batch]:
    """The forward of one image without gradients, with all layers that are read, and its batch.

    Args:
        model: Perhaps without memory.
        task: What is learned.
        pass_name: The pass name of the task.
        layers: Which attention is read.
        read: Parts of the forward. Where attention of another package is read, the tensors are real, else on meta.

    Raises:
        UserError: The model cannot be run without memory.
    """
    spec = meta.ModelSpec.of(model)
    real = bool(read & {Reads.ATTENTION, Reads.ATTENTION_OUTPUT}) and not discovery.own_layers(model)
    if real and _is_empty(model) and _is_large(model):
        raise UserError(
            f"{spec.cls.__name__}: is too large to be built for counting; load it, or count without the loss"
        )
    try:
        if not real:
            batch = example(task, pass_name, model, meta.META)
            shapes = tuple(tuple(x.shape) for x in vars(batch).values() if isinstance(x, torch.Tensor))
            return _forward_of_shapes(spec, task, pass_name, read, layers, shapes)
        return _forward(spec.build() if _is_empty(model) else model, task, pass_name, read, layers)
    except NotImplementedError as error:
        raise UserError(f"{spec.cls.__name__}: its forward reads values, so that it cannot be counted") from error


@lru_cache(maxsize=64)
def _forward_of_shapes(
    spec: meta.ModelSpec, task: Task[Any], pass_name: str, read: frozenset[Reads], layers: Named, shapes: object
) -> tuple[Forward, Batch]:
    """By the shapes of the task's example, too: it may have been given other data since."""
    return _forward(spec.skeleton(), task, pass_name, read, layers)


def _forward(
    model: nn.Module, task: Task[Any], pass_name: str, read: frozenset[Reads], layers: Named
) -> tuple[Forward, Batch]:
    batch = example(task, pass_name, model, device_of(model))
    with torch.no_grad(), meta.without_autocast(), evaluated_norms(model):
        return recording.forward(task, model, batch, read, layers), batch


def example(task: Task[Any], pass_name: str, model: nn.Module, device: torch.device) -> Batch:
    """A batch of one image in one pass.

    Args:
        task: What is learned.
        pass_name: The pass name of the task.
        model: Whose shape the batch has.
        device: Where it is.
    """
    (example,) = [batch for batch in task.example(model, 1, device) if batch.pass_name == pass_name]
    return example
