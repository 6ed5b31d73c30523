"""The state of a run, all of it: with it a run resumes as if it had never stopped."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dit_shd.core.dtensor import gather_tree, shard_like
from dit_shd.distillation.distiller import Distiller
from dit_shd.training.ema import EMA


@dataclass(frozen=True)
class TrainState:
    """The parts of a run that change from step to step. Draws need none: they are functions of the step."""

    distiller: Distiller
    optimizer: Any
    averages: EMA
    scaler: Any
    """fp16's gradient scaler, or None."""

    def tensors(self, kept: bool = True) -> dict[str, dict[str, Tensor]]:
        """Whole tensors by file and name: student and losses, and every average.

        Every process takes part, since they may be in slices.

        Args:
            kept: Whether this process has a use for them; if not, they are empty.
        """
        averages = {average_file(rate): self.averages.tensors(rate) for rate in self.averages.rates}
        repeated = tied(self.distiller)
        tensors = {name: tensor for name, tensor in self.distiller.state_dict().items() if name not in repeated}
        return gather_tree({"distiller": tensors, **averages}, kept)

    def student(self, rate: float) -> dict[str, Tensor]:
        """A student's whole tensors with the weights of one average, likewise; other buffers are as they are."""
        student = self.distiller.student
        tensors = student.state_dict()
        buffers = {name: tensors[name] for name, _ in student.named_buffers() if name in tensors}
        return gather_tree({**buffers, **self.averages.tensors(rate)})

    def optimizer_state(self, kept: bool = True) -> dict[str, Any]:
        """The optimizer's state, likewise."""
        return gather_tree(self.optimizer.state_dict(), kept)

    def numbers(self) -> dict[str, Any]:
        """The rest of the state, as plain data."""
        return {} if self.scaler is None else {"scaler": self.scaler.state_dict()}

    def restore(self, saved: dict[str, Any]) -> None:
        """Put back the state of a checkpoint, in every process its slices.

        Args:
            saved: Tensors by file, the optimizer's state_dict, and numbers.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: It is of another run.
        """
        current = self.distiller.state_dict()
        tensors = {**saved["distiller"]}
        tensors |= {name: tensors[first] for name, first in tied(self.distiller).items() if name not in tensors}
        self.distiller.load_state_dict({k: shard_like(v, current.get(k, v)) for k, v in tensors.items()})
        self.optimizer.load_state_dict(self._sliced(saved["optimizer"]))
        newest = {name: tensors[f"student.{name}"] for name in self.averages.measured}  # earlier versions' averages
        for rate in self.averages.rates:
            self.averages.load(rate, {**newest, **saved[average_file(rate)]})
        if self.scaler is not None and "scaler" in saved:
            self.scaler.load_state_dict(saved["scaler"])

    def _sliced(self, optimizer: dict[str, Any]) -> dict[str, Any]:
        """An optimizer's state whose tensors of a parameter's shape are cut into slices as the parameter is."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state: dict[Any, dict[str, Any]] = {}
        for i, values in optimizer["state"].items():
            like = parameters[i]
            cut = {k: shard_like(v, like) for k, v in values.items() if isinstance(v, Tensor) and v.shape == like.shape}
            state[i] = {**values, **cut}
        return {**optimizer, "state": state}


def tied(module: nn.Module) -> dict[str, str]:
    """Further names of parameters that have several (a language model's head is its embedding), and their first."""
    first: dict[int, str] = {}
    names = ((name, first.setdefault(id(p), name)) for name, p in module.named_parameters(remove_duplicate=False))
    return {name: kept for name, kept in names if name != kept}


def average_file(rate: float) -> str:
    """The name of an average's file in a checkpoint."""
    return f"ema_{rate:g}"
