"""The cause of a step that is not finite: loss terms, and the first layer whose output or gradient is not finite."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dit_shd.core.dtensor import local
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.records import Reads
from dit_shd.distillation.teachers import Teachers, role
from dit_shd.tasks import Batch
from dit_shd.training.batches import Passes

if TYPE_CHECKING:
    from accelerate import Accelerator

HIDES = "hides keys that its teacher sees, by a sliding window, say"
"""The reason for a divergence of attention maps that is infinite while no layer is."""


@dataclass(frozen=True)
class Diagnosis:
    """The parts of a step that are not finite."""

    terms: tuple[str, ...] = ()
    """Loss terms, as pass/term."""
    layer: str | None = None
    """The first one, and whether by its output or its gradient."""

    @property
    def shown(self) -> bool:
        """Whether the step, taken again, is not finite again."""
        return bool(self.terms) or self.layer is not None

    def __str__(self) -> str:
        if not self.shown:
            return "taken again, its loss, gradients and layers are finite"
        what = f"the loss ({', '.join(self.terms[:4])})" if self.terms else "the gradient"
        return f"{what} is not finite (NaN or infinity), first in {self.layer or 'no layer that shows it again'}"


def diagnose(
    distiller: Distiller,
    teachers: Teachers,
    batches: Iterable[Passes],
    terms: Mapping[str, Tensor],
    accelerator: "Accelerator",
) -> Diagnosis:
    """Find the parts of a step that are not finite, in any process.

    Args:
        distiller: With the step's gradients.
        teachers: The teachers, by name.
        batches: Of the step, in this process's micro batches.
        terms: The terms of the step, in this process.
        accelerator: The accelerator of the run.
    """
    from accelerate.utils import gather_object

    layers: list[str | None] = []
    for passes in batches:
        moved = [batch.to(accelerator.device) for batch in passes]
        with accelerator.autocast():
            layers.append(first_non_finite(distiller, teachers, moved))
    bad = [key for key, value in terms.items() if key != "loss" and not bool(torch.isfinite(value))]
    processes = gather_object([(bad, [*layers, bad_gradient(distiller)])])  # of slices each process has its own
    names = dict.fromkeys(term for terms, _ in processes for term in terms)
    shown = [(place, layer) for _, parts in processes for place, layer in enumerate(parts) if layer]
    return Diagnosis(tuple(names), min(shown, key=lambda pair: pair[0])[1] if shown else None)


@torch.no_grad()
def first_non_finite(distiller: Distiller, teachers: Teachers, batches: Passes) -> str | None:
    """Run the passes forward; the first layer whose output is not finite, or the part of the batch that is not.

    All passes are run, whatever the first one shows: the other processes of a sharded run wait for their slices.

    Args:
        distiller: On the batches' device.
        teachers: On the same device.
        batches: The passes.
    """
    bad: list[str] = []
    of_maps = [name for name, loss in distiller.named_losses() if Reads.ATTENTION in loss.reads]
    for batch in batches:
        name = batch.pass_name
        with recorded_non_finite(_layers(distiller, teachers)) as first:
            loss, terms = distiller(batch, teachers)
        parts = {part: value for part, value in tensors_of(batch).items() if value.is_floating_point()}
        bad += [f"the batch itself ({part})" for part, tensor in parts.items() if not _all_finite(tensor)]
        bad += [f"{layer} (its output, {name} pass)" for layer in first]
        if not bool(torch.isfinite(loss)):
            maps = [key for key in of_maps if bool(torch.isposinf(terms.get(key, loss.new_zeros(())).sum()))]
            why = f"; {maps[0]} is infinite where a student {HIDES}" if maps else ""
            bad.append(f"the loss alone ({name} pass){why}")
    return bad[0] if bad else None


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch by field; those of `data` as data/NAME."""
    fields = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return fields | {f"data/{name}": value for name, value in batch.data.items()}


def _layers(distiller: nn.Module, teachers: Teachers) -> Iterator[tuple[str, nn.Module]]:
    """Every module but the outermost, whose output is the loss."""
    yield from ((name, module) for name, module in distiller.named_modules() if name)
    for name, teacher in teachers.items():
        yield from teacher.named_modules(prefix=role(name))


@contextmanager
def recorded_non_finite(modules: Iterable[tuple[str, nn.Module]]) -> Generator[list[str]]:
    """A list that gets the name of the first module whose output is not finite."""
    first: list[str] = []

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def record(_module: nn.Module, _inputs: object, output: object) -> None:
            floats = (x for x in tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point())
            if not first and not all(map(_all_finite, floats)):
                first.append(name)

        return record

    with ExitStack() as stack:
        for name, module in modules:
            stack.enter_context(module.register_forward_hook(hook(name)))
        yield first


def bad_gradient(module: nn.Module) -> str | None:
    """The last layer (where the backward begins) whose gradient is not finite."""
    bad = [name for name, p in module.named_parameters() if p.grad is not None and not _all_finite(p.grad)]
    return f"{bad[-1]} (its gradient)" if bad else None


def _all_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(local(tensor)).all())
