"""Numbers that go bad: a loss or gradient that is not finite never reaches the weights.

The step is taken again to find its cause (diagnosis.py). Its batch is kept in RUN/bad_steps/step_N.safetensors
(bad_step.read_batches), the state before it as a checkpoint, so that

    from dit_shd.training.replay import replay
    print(replay("runs/x", step=1234))

finds the same again, and `dit-shd train CONFIG skip_bad_steps=1` goes on without that step.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dit_shd.core.distributed import run_on_main
from dit_shd.core.errors import UserError
from dit_shd.training import bad_step
from dit_shd.training.batches import Passes
from dit_shd.training.diagnosis import Diagnosis

if TYPE_CHECKING:
    from accelerate import Accelerator

_log = logging.getLogger("dit_shd")


class Guard:
    """Judges every step before it reaches the weights; all processes decide alike.

    Args:
        run: The run folder.
        accelerator: The accelerator of the run.
        limit: Bad steps that are left out before one is an error.
    """

    def __init__(self, run: Path, accelerator: "Accelerator", limit: int):
        self.folder, self.accelerator, self.limit = run / "bad_steps", accelerator, limit
        self.skipped = 0
        """Bad steps left out so far; a checkpoint holds it."""

    def finite(self, loss: Tensor, norm: Tensor) -> bool:
        """Whether loss and gradient norm are finite in all processes.

        In fp16 a gradient that overflows is left out by the scaler, which then scales less; one that overflows without
        being scaled up is bad itself.

        Args:
            loss: The loss of the step, in this process.
            norm: The norm of all gradients.
        """
        scaler = self.accelerator.scaler
        good = torch.isfinite(loss) & (torch.isfinite(norm) | (scaler is not None and scaler.get_scale() > 1))
        count: Any = self.accelerator.reduce(good.to(self.accelerator.device, torch.float32), "sum")
        return int(count) == self.accelerator.num_processes

    def skip(self, number: int, diagnosis: Diagnosis, batch: Callable[[], Passes]) -> UserError | None:
        """Keep the batch of a bad step and count it.

        Args:
            number: The number of the step, from 0.
            diagnosis: Its cause.
            batch: Draws the batch of all processes.

        Returns:
            The error, where no more steps may be left out.
        """
        file = self.folder / f"step_{number + 1:08d}.safetensors"
        words = f"step {number + 1}: {'' if diagnosis.shown else 'its loss or gradient was not finite; '}{diagnosis}"
        kept = f"its batch is in {file}"
        try:
            run_on_main(lambda: bad_step.write(file, batch(), diagnosis))
        except UserError as error:  # a full disk, say, must not hide what is wrong, nor cost the steps before
            kept = f"its batch is not kept ({error})"
        if self.skipped >= self.limit:
            return UserError(
                f"{words}. It has not reached the weights, which are saved as of step {number}; {kept}. The same "
                f"command with skip_bad_steps={self.limit + 1} goes on without it; a lower optimizer.lr or "
                "precision=no may help"
            )
        self.skipped += 1
        if self.accelerator.is_main_process:
            _log.warning("%s; left out (%d of %d), %s", words, self.skipped, self.limit, kept)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.update()  # or the next gradient could not be unscaled
        return None
