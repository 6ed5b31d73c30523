"""Refit the linear maps of a narrower student, one after the other, as they run.

A map that reads fewer channels than its teacher's is fitted (regression.py) to what the student gives it: the teacher's
inputs x are regressed on the student's z on calibration batches. What earlier maps, refitted already, still get wrong
is in z, so that later maps make up for it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from dit_shd.core.progress import progress_bar
from dit_shd.distillation.initialisation.layouts import is_transposed
from dit_shd.distillation.initialisation.regression import RegressionMoments
from dit_shd.models.blocks import named_blocks
from dit_shd.models.evaluation_mode import evaluated
from dit_shd.tasks import Batch

Predict = Callable[[nn.Module, Any], object]
"""Runs a model on a batch: Task.predict."""
Run = Callable[[], object]
"""Runs a model on one batch, or the block of it that is looked at."""


@dataclass(frozen=True)
class Weights:
    """A teacher's linear map as far as the student has its outputs."""

    weight: Tensor
    """W [o,channels]."""
    bias: Tensor | None
    """b [o]; None where the student's map has none."""
    start: Tensor
    """S [channels,kept] of x ~ S z, towards which the regression is shrunk."""
    idle: Tensor | None = None
    """Outputs [o,1] whose weights stay as they are in the student; None for none."""


@dataclass(frozen=True)
class CutMap:
    """A linear map of the student that reads less than the teacher's that it is made of."""

    source: str
    """Its name in the teacher."""
    weights: Callable[[], Weights]
    """Asked for when it is its turn."""


@dataclass(frozen=True)
class _Kept:
    """A tensor that waits on the CPU."""

    tensor: Tensor
    device: torch.device


class _Reached(Exception):
    """A model has come to the module that is asked for."""


@torch.no_grad()
def refit(
    student: nn.Module, teacher: nn.Module, maps: Mapping[str, CutMap], predict: Predict, batches: Sequence[Batch]
) -> None:
    """Refit the maps of a student that has the weights it was selected.

    A block runs by itself, on what each batch gives it, as often as it has maps; what stands before it runs once more.

    Args:
        student: Whose maps are refitted.
        teacher: Whose maps they are made of.
        maps: By the student's names.
        predict: Runs either model on a batch.
        batches: For calibration; without any nothing is refitted.
    """
    if not maps:
        return
    new, old = _Inputs(student, predict, batches), _Inputs(teacher, predict, batches)
    with evaluated(student):  # what dropout hides of an input is none of it
        order = _in_order(student, maps, predict, batches)
        with progress_bar(len(order), "map", "initialisation") as bar:
            for names in order:
                moments = RegressionMoments()
                for batch, z, x in zip(batches, new.of(names[0]), old.of(maps[names[0]].source)):
                    if z is not None and x is not None:
                        moments.add(*_counting(batch, z, x))
                for name in names:
                    _fit(student.get_submodule(name), maps[name].weights(), moments)
                bar.update()


def _in_order(
    student: nn.Module, maps: Mapping[str, CutMap], predict: Predict, batches: Sequence[Batch]
) -> list[list[str]]:
    """The maps in the order in which they run; those of one input together.

    Not every batch runs all of them: the masked pass of an MDTv2 has a block more, in between.
    """
    orders = [_order(student, maps, partial(predict, student, batch)) for batch in batches]
    groups: list[list[str]] = []
    for order in sorted(orders, key=len, reverse=True):
        known = {name for group in groups for name in group}
        groups += [left for group in order if (left := [name for name in group if name not in known])]
    return groups


def _order(student: nn.Module, maps: Mapping[str, CutMap], run: Run) -> list[list[str]]:
    """Those that one batch runs."""
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
        for name in maps:
            stack.callback(student.get_submodule(name).register_forward_pre_hook(note(name)).remove)
        run()
    return groups


class _Inputs:
    """What maps of one model are given on each batch."""

    def __init__(self, model: nn.Module, predict: Predict, batches: Sequence[Batch]):
        self._model, self._blocks = model, named_blocks(model)
        self._whole = [partial(predict, model, batch) for batch in batches]
        self._block: str | None = None
        self._runs: list[Run | None] = []
        """Of each batch; None: it does not run this block."""

    def of(self, name: str) -> Iterator[Tensor | None]:
        """The input of a map on each batch; None where the map does not run."""
        block = next((block for block in self._blocks if name.startswith(f"{block}.")), None)
        if block is None:
            self._runs = [*self._whole]
        elif block != self._block:
            self._runs = [self._of_block(block, run) for run in self._whole]
        self._block = block
        for run in self._runs:
            call = None if run is None else _call(self._model.get_submodule(name), run)
            yield None if call is None else call[0][0]

    def _of_block(self, name: str, whole: Run) -> Run | None:
        """Runs a block on what it is given, where that is tensors and numbers; else the whole model up to it."""
        block = self._blocks[name]
        call = _call(block, whole)
        if call is None:
            return None
        if not all(leaf is None or isinstance(leaf, Tensor | bool | int | float | str) for leaf in tree_leaves(call)):
            return whole
        kept = tree_map_only(Tensor, lambda x: _Kept(x.cpu(), x.device), call)
        return partial(_again, block, kept)


def _call(module: nn.Module, run: Run) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments of a module's first call; what comes after it does not run. None: it is not called."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))
        raise _Reached

    with module.register_forward_pre_hook(hook, with_kwargs=True), suppress(_Reached):
        run()
    return calls[0] if calls else None


def _again(block: nn.Module, kept: Any) -> object:  # noqa: ANN401
    """Call a block with copies of what it was given."""
    args, kwargs = tree_map_only(_Kept, lambda x: x.tensor.to(x.device, copy=True), kept)
    return block(*args, **kwargs)


def _counting(batch: Batch, *inputs: Tensor) -> list[Tensor]:
    """Inputs [b,n,...] of the tokens that take part, without padding of prompts; all of other inputs."""
    weight = batch.row_weight(inputs[0].shape[1]) if inputs[0].ndim == 3 else None
    return list(inputs) if weight is None else [x[weight > 0] for x in inputs]


def _fit(module: Any, teacher: Weights, moments: RegressionMoments) -> None:  # noqa: ANN401
    """Overwrite the weights of one map of the student."""
    weight = teacher.weight.double().cpu()
    bias = weight.new_zeros(len(weight)) if teacher.bias is None else teacher.bias.double().cpu()
    weight, bias = moments.regression(teacher.start, offset=teacher.bias is not None).through(weight, bias)
    if teacher.idle is not None:
        before = module.weight.t() if is_transposed(module) else module.weight
        weight = torch.where(teacher.idle, before.cpu().double(), weight)
    module.weight.copy_(weight.t() if is_transposed(module) else weight)
    if teacher.bias is not None:
        module.bias.copy_(bias)
