"""What a checkpoint must hold for a run to go on as if nothing had happened: there is no other state."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dit_shd.averages import Averages
from dit_shd.distiller import Distiller


@dataclass(frozen=True)
class RunState:
    """The parts of a run that change from step to step. Draws need none: they are functions of the step."""

    distiller: Distiller
    optimizer: Any
    averages: Averages
    scaler: Any
    """fp16's gradient scaler, or None."""

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Tensors by file and name: student and losses, and every average."""
        averages = {average_file(rate): self.averages.tensors(rate) for rate in self.averages.rates}
        return {"distiller": self.distiller.state_dict(), **averages}

    def numbers(self) -> dict[str, Any]:
        """What else there is, as plain data."""
        return {} if self.scaler is None else {"scaler": self.scaler.state_dict()}

    def restore(self, saved: dict[str, Any], device: torch.device) -> None:
        """Put back what a checkpoint holds.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: it is not of this run.
        """
        self.distiller.load_state_dict(saved["distiller"])
        self.optimizer.load_state_dict(saved["optimizer"])
        for rate in self.averages.rates:
            self.averages.load(rate, saved[average_file(rate)], device)
        if self.scaler is not None and "scaler" in saved:
            self.scaler.load_state_dict(saved["scaler"])


def average_file(rate: float) -> str:
    """The name of an average's file in a checkpoint."""
    return f"ema_{rate:g}"
