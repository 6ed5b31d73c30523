"""Refit the linear maps of a narrower student of any class, one after the other, as they run.

A map that reads fewer channels than its teacher's is fitted (regression.py) to what the student gives it: the teacher's
inputs x are regressed on the student's z on calibration batches. What earlier maps, refitted already, still get wrong
is in z, so that later maps make up for it. Each map takes a part of a forward of both models for every batch.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dit_shd.distillation.initialisation.depth import source_of
from dit_shd.distillation.initialisation.layouts import is_map
from dit_shd.distillation.initialisation.regression import RegressionMoments
from dit_shd.distillation.initialisation.selection import Selection
from dit_shd.tasks import Batch

Predict = Callable[[nn.Module, Any], object]
"""Runs a model on a batch: Task.predict."""

EXPERTS = "experts"
"""A list of networks of which each is given some tokens."""


class _Reached(Exception):
    """A model has come to the map that is asked for."""


@torch.no_grad()
def refit(selection: Selection, predict: Predict, batches: Sequence[Batch]) -> None:
    """Refit a student that has its selected weights.

    Args:
        selection: That was run.
        predict: Runs either model on a batch.
        batches: For calibration; without any nothing is refitted.
    """
    student, teacher = selection.student, selection.teacher
    training = student.training
    student.eval()  # what dropout hides of an input is none of it
    for names in tqdm(_in_order(selection, predict, batches[:1]), unit="map", desc="initialisation", disable=None):
        source = teacher.get_submodule(source_of(f"{names[0]}.", selection.layers)[:-1])
        moments = RegressionMoments()
        for batch in batches:
            z = _input(student, student.get_submodule(names[0]), predict, batch)
            moments.add(*_counting(batch, z, _input(teacher, source, predict, batch)))
        for name in names:
            _fit(selection, name, moments)
    student.train(training)


def _in_order(selection: Selection, predict: Predict, batches: Sequence[Batch]) -> list[list[str]]:
    """The maps that lost inputs in the order in which they run; those of one input together.

    A head that is the embedding, too, is none of them: another reading of the last block is another embedding. Nor is
    an expert's: a gate gives it other tokens than the teacher's.
    """
    uses = Counter(id(p) for _, p in selection.student.named_parameters(remove_duplicate=False))
    groups: list[list[str]] = []
    inputs: list[Tensor] = []

    def note(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if any(name in group for group in groups):
                return
            if inputs and inputs[-1] is args[0]:
                groups[-1].append(name)
            else:
                groups.append([name])
                inputs.append(args[0])

        return hook

    with ExitStack() as stack:
        for name, module in selection.student.named_modules():
            weight: Any = module.weight if is_map(module) and EXPERTS not in name.split(".") else None
            if weight is not None and uses[id(weight)] == 1 and selection.axes.of[f"{name}.weight"][1]:
                stack.callback(module.register_forward_pre_hook(note(name)).remove)
        for batch in batches:
            predict(selection.student, batch)
    return groups


def _input(model: nn.Module, module: nn.Module, predict: Predict, batch: Batch) -> Tensor:
    """What a module of a model is given on a batch; the rest of the model does not run."""
    given: list[Tensor] = []

    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        given.append(args[0])
        raise _Reached

    handle = module.register_forward_pre_hook(hook)
    try:
        with suppress(_Reached):
            predict(model, batch)
    finally:
        handle.remove()
    return given[0]


def _counting(batch: Batch, *inputs: Tensor) -> list[Tensor]:
    """Inputs [b,n,...] of the tokens that take part, without padding of prompts; all of other inputs."""
    weight = batch.row_weight(inputs[0].shape[1]) if inputs[0].ndim == 3 else None
    return list(inputs) if weight is None else [x[weight > 0] for x in inputs]


def _fit(selection: Selection, name: str, moments: RegressionMoments) -> None:
    """The weights of one map, from those that were selected."""
    module: Any = selection.student.get_submodule(name)
    rows, columns = selection.axes.of[f"{name}.weight"]
    weight = selection.source(f"{name}.weight")
    start = torch.eye(weight.shape[1], dtype=torch.float64)[:, selection.index(columns)]
    if rows:
        weight = weight.index_select(0, selection.index(rows).to(weight.device))
    bias = torch.zeros(len(weight)) if module.bias is None else selection.selected(f"{name}.bias")
    fitted = moments.regression(start, offset=module.bias is not None)
    weight, bias = fitted.through(weight.double().cpu(), bias.double().cpu())
    module.weight.copy_(selection.turned(f"{name}.weight", weight))
    if module.bias is not None:
        module.bias.copy_(bias)
