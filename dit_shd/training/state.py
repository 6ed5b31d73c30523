"""What a checkpoint must hold for a run to go on as if nothing had happened: there is no other state."""

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

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Whole tensors by file and name: student and losses, and every average. Where they are sharded, every
        process has to ask."""
        averages = {average_file(rate): self.averages.tensors(rate) for rate in self.averages.rates}
        again = tied(self.distiller)
        own = {name: tensor for name, tensor in self.distiller.state_dict().items() if name not in again}
        return gather_tree({"distiller": own, **averages})

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer's state, likewise."""
        return gather_tree(self.optimizer.state_dict())

    def numbers(self) -> dict[str, Any]:
        """What else there is, as plain data."""
        return {} if self.scaler is None else {"scaler": self.scaler.state_dict()}

    def restore(self, saved: dict[str, Any]) -> None:
        """Put back what a checkpoint holds, each process its own slices.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: it is not of this run.
        """
        own = self.distiller.state_dict()
        whole = {**saved["distiller"]}
        whole |= {name: whole[first] for name, first in tied(self.distiller).items() if name not in whole}
        self.distiller.load_state_dict({k: shard_like(v, own.get(k, v)) for k, v in whole.items()})
        self.optimizer.load_state_dict(self._sliced(saved["optimizer"]))
        for rate in self.averages.rates:
            self.averages.load(rate, saved[average_file(rate)])
        if self.scaler is not None and "scaler" in saved:
            self.scaler.load_state_dict(saved["scaler"])

    def _sliced(self, optimizer: dict[str, Any]) -> dict[str, Any]:
        """Tensors of a parameter's shape are cut as the parameter is."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

        def cut(value: Any, like: Tensor) -> Any:
            fits = isinstance(value, Tensor) and value.shape == like.shape
            return shard_like(value, like) if fits else value

        state = {i: {k: cut(v, parameters[i]) for k, v in found.items()} for i, found in optimizer["state"].items()}
        return {**optimizer, "state": state}


def tied(module: nn.Module) -> dict[str, str]:
    """Further names of parameters that have several (a language model's head is its embedding), and their first."""
    first: dict[int, str] = {}
    names = ((name, first.setdefault(id(p), name)) for name, p in module.named_parameters(remove_duplicate=False))
    return {name: kept for name, kept in names if name != kept}


def average_file(rate: float) -> str:
    """The name of an average's file in a checkpoint."""
    return f"ema_{rate:g}"
