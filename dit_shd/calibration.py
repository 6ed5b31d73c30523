"""What some losses want to know of the teacher before training: found once, saved with the run, read back on resume."""

import json
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dit_shd.attention import capture
from dit_shd.batch import Batch, PassName
from dit_shd.checkpoint import RunFolder, write_text
from dit_shd.distiller import Distiller, predict
from dit_shd.errors import UserError
from dit_shd.sharding import captured, is_sharded

if TYPE_CHECKING:
    from accelerate import Accelerator

FILE = "calibration.json"
Passes = dict[PassName, Batch]
_log = logging.getLogger("dit_shd")


@torch.no_grad()
def look(distiller: Distiller, teacher: nn.Module, batches: Iterable[Passes]) -> dict[str, Any]:
    """Show the batches to every loss that wants some; what each found, by its name."""
    wanting = {name: loss for name, loss in distiller.named_losses() if loss.calibration}
    for number, passes in enumerate(batches):
        for name, batch in passes.items():
            losses = [loss for loss in wanting.values() if number < loss.calibration and name in loss.passes]
            if not losses:
                continue
            with capture(distiller.student) as ours, captured(teacher) as theirs:
                predict(distiller.student, batch)
                predict(teacher, batch)
            for loss in losses:
                loss.calibrate(theirs, ours)
    return {name: loss.calibrated() for name, loss in wanting.items()}


def settle(
    distiller: Distiller,
    teacher: nn.Module | None,
    batches: Iterable[Passes],
    folder: RunFolder,
    accelerator: "Accelerator",
) -> None:
    """Calibrate the losses of a new run, or restore what the run found before.

    The main process looks and writes; all read, so that all work with the same. A sharded teacher needs all to look.
    """
    wanting = {name: loss for name, loss in distiller.named_losses() if loss.calibration}
    if not wanting or teacher is None:
        return
    file = folder.path / FILE
    new = not file.exists()
    accelerator.wait_for_everyone()
    if new and (accelerator.is_main_process or is_sharded(teacher)):
        found = look(
            distiller, teacher, ({k: batch.to(accelerator.device) for k, batch in passes.items()} for passes in batches)
        )
        if accelerator.is_main_process:
            write_text(file, json.dumps(found, indent=1) + "\n")
    accelerator.wait_for_everyone()
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        for name, loss in wanting.items():
            loss.restore(found[name])
            told = [(key, at, entry) for key, value in found[name].items() for at, entry in value.items()]
            for key, at, entry in told if accelerator.is_main_process else ():
                _log.info("%s %s, %s: %s", name, key, at, entry)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not readable as a calibration ({error}); move it away to find it anew") from error
