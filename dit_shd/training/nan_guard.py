"""Numbers that go bad: a loss or gradient that is not finite never reaches the weights.

What it was is found by doing the step again: the loss terms, and the first layer whose output or, where all outputs are
finite, the last whose gradient is not. The batch is kept in RUN/bad_steps/step_N.safetensors (read_batches), the state
before it as a checkpoint, so that

    from dit_shd.training.replay import replay
    print(replay("runs/x", step=1234))

finds the same again, and `dit-shd train CONFIG skip_bad_steps=1` goes on without that step.
"""

import json
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dit_shd.core.distributed import run_on_main
from dit_shd.core.errors import UserError
from dit_shd.core.files import atomic_file
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.teachers import Teachers, role
from dit_shd.tasks import Batch

if TYPE_CHECKING:
    from accelerate import Accelerator


Passes = Sequence[Batch]
_log = logging.getLogger("dit_shd")


@dataclass(frozen=True)
class Diagnosis:
    """What was not finite."""

    terms: tuple[str, ...] = ()
    """Loss terms, as pass/term."""
    layer: str | None = None
    """Where it began, and in what."""

    def __str__(self) -> str:
        what = f"the loss ({', '.join(self.terms[:4])})" if self.terms else "the gradient"
        return f"{what} is not finite (NaN or infinity), first in {self.layer or 'no layer that shows it again'}"


class Guard:
    """Judges every step before it reaches the weights; all processes decide alike.

    Args:
        folder: of the run. limit: how many bad steps may be left out before it is an error.
    """

    def __init__(self, folder: Path, accelerator: "Accelerator", limit: int):
        self.folder, self.accelerator, self.limit = folder / "bad_steps", accelerator, limit
        self.skipped = 0
        """Bad steps left out so far; a checkpoint holds it."""

    def finite(self, loss: Tensor, norm: Tensor) -> bool:
        """Whether loss and gradient norm are finite in all processes.

        In fp16 a gradient that overflows is the scaler's to leave out, which then scales less; one that does so without
        being scaled up is bad itself.
        """
        scaler = self.accelerator.scaler
        good = torch.isfinite(loss) & (torch.isfinite(norm) | (scaler is not None and scaler.get_scale() > 1))
        count: Any = self.accelerator.reduce(good.to(self.accelerator.device, torch.float32), "sum")
        return int(count) == self.accelerator.num_processes

    def skip(self, number: int, finding: Diagnosis, batch: Callable[[], Passes]) -> UserError | None:
        """Keep the batch of a bad step and count it; the error, where no more may be left out.

        Args:
            number: of the step, from 0. batch: draws it, of all processes.
        """
        file = self.folder / f"step_{number + 1:08d}.safetensors"
        run_on_main(lambda: self._keep(file, batch(), finding))
        if self.skipped >= self.limit:
            return UserError(
                f"step {number + 1}: {finding}. It has not reached the weights, which are saved as of step {number}; "
                f"its batch is in {file}. The same command with skip_bad_steps={self.limit + 1} goes on without it; a "
                "lower optimizer.lr or precision=no may help"
            )
        self.skipped += 1
        if self.accelerator.is_main_process:
            count = f"{self.skipped} of {self.limit}"
            _log.warning("step %d: %s; left out (%s), its batch is in %s", number + 1, finding, count, file)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.update()  # or the next gradient could not be unscaled
        return None

    def _keep(self, file: Path, batches: Passes, finding: Diagnosis) -> None:
        """Write the batch of all processes down, with what was found."""
        tensors = {
            f"{batch.pass_name}/{field}": value.clone(memory_format=torch.contiguous_format)  # the passes share some
            for batch in batches
            for field, value in _tensors_of(batch).items()
        }
        told = {"batch": json.dumps({"step": batches[0].step, **asdict(finding)})}
        self.folder.mkdir(exist_ok=True)
        with atomic_file(file) as stream:
            stream.write(save(tensors, told))


def diagnose(
    distiller: Distiller,
    teachers: Teachers,
    batches: Iterable[Passes],
    metrics: Mapping[str, Tensor],
    accelerator: "Accelerator",
) -> Diagnosis:
    """What of a step is not finite, in whichever process.

    Args:
        distiller: with the step's gradients. batches: of the step, as this process divides it. metrics: its terms.
    """
    from accelerate.utils import gather_object

    gradient, layers = bad_gradient(distiller), []
    for passes in batches:
        moved = [batch.to(accelerator.device) for batch in passes]
        with accelerator.autocast():
            layers.append(first_non_finite(distiller, teachers, moved))
    terms = [key for key, value in metrics.items() if key != "loss" and not bool(torch.isfinite(value))]
    found = gather_object([(terms, layers)])
    every = dict.fromkeys(term for terms, _ in found for term in terms)
    return Diagnosis(tuple(every), next((layer for _, layers in found for layer in layers if layer), gradient))


@torch.no_grad()
def first_non_finite(distiller: Distiller, teachers: Teachers, batches: Passes) -> str | None:
    """Run the passes forward; the first layer whose output is not finite, or the part of the batch that is not.

    All passes are run, whatever the first one shows: the other processes of a sharded run wait for their slices.
    """
    found: list[str] = []
    for batch in batches:
        name = batch.pass_name
        with first_not_finite(_layers(distiller, teachers)) as first:
            loss, _ = distiller(batch, teachers)
        parts = {part: value for part, value in _tensors_of(batch).items() if value.is_floating_point()}
        found += [f"the batch itself ({part})" for part, tensor in parts.items() if not _all_finite(tensor)]
        found += [f"{layer} (its output, {name} pass)" for layer in first]
        if not bool(torch.isfinite(loss)):
            found.append(f"the loss alone ({name} pass)")
    return found[0] if found else None


def _tensors_of(batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch by field; those of `data` as data/NAME."""
    fields = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return fields | {f"data/{name}": value for name, value in batch.data.items()}


def _layers(distiller: nn.Module, teachers: Teachers) -> Iterator[tuple[str, nn.Module]]:
    """Every module but the outermost, whose output is the loss."""
    yield from ((name, module) for name, module in distiller.named_modules() if name)
    for name, teacher in teachers.items():
        yield from teacher.named_modules(prefix=role(name))


@contextmanager
def first_not_finite(modules: Iterable[tuple[str, nn.Module]]) -> Generator[list[str]]:
    """A list that gets the name of the first module whose output is not finite."""
    first: list[str] = []

    def hook(name: str) -> Any:
        def see(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not first and not all(map(_all_finite, _tensors(output))):
                first.append(name)

        return see

    handles = [module.register_forward_hook(hook(name)) for name, module in modules]
    try:
        yield first
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def bad_gradient(module: nn.Module) -> str | None:
    """The last layer (where the backward begins) whose gradient is not finite."""
    bad = [name for name, p in module.named_parameters() if p.grad is not None and not _all_finite(p.grad)]
    return f"{bad[-1]} (its gradient)" if bad else None


def _all_finite(tensor: Tensor) -> bool:
    local: Any = tensor
    return bool(torch.isfinite(local.to_local() if hasattr(local, "to_local") else local).all())


def read_batches(file: Path, batch_type: type[Batch]) -> list[Batch]:
    """The passes of a batch that a run kept, as batches of its task.

    Raises:
        UserError: no such file, or another.
    """
    try:
        passes: dict[Any, dict[str, Any]] = {}
        with safe_open(file, "pt") as opened:
            step = json.loads((opened.metadata() or {})["batch"])["step"]
            for key in opened.keys():  # noqa: SIM118
                name, _, field = key.partition("/")
                values = passes.setdefault(name, {"pass_name": name, "step": step, "data": {}})
                field, _, inner = field.partition("/")
                (values["data"] if inner else values)[inner or field] = opened.get_tensor(key)
        return [batch_type(**tensors) for tensors in passes.values()]
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{file}: wanted a batch kept by a training run ({error})") from error
