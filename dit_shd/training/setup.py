"""What a run finds out before its first step: made once, saved with the run, read back on resume."""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dit_shd.core.distributed import joining, run_on_main
from dit_shd.core.dtensor import is_sharded
from dit_shd.core.errors import UserError
from dit_shd.core.files import write_text
from dit_shd.distillation.calibration import calibrate
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.initialisation.initialise import initialise, moment_batches, shd_of
from dit_shd.distillation.teachers import Teachers
from dit_shd.models import loading
from dit_shd.tasks import Batch, Task
from dit_shd.training.config import TrainConfig
from dit_shd.training.run_folder import RunFolder

if TYPE_CHECKING:
    from accelerate import Accelerator

PATIENCE = timedelta(hours=3)
"""How long processes wait for the main one, which may be scoring or saving; NCCL's own is 10 minutes."""

_log = logging.getLogger("dit_shd")

CALIBRATION_FILE = "calibration.json"


def load_or_calibrate(
    distiller: Distiller,
    teachers: Teachers,
    steps: Iterable[Sequence[Batch]],
    folder: RunFolder,
    accelerator: "Accelerator",
) -> None:
    """Calibrate the losses of a new run, or restore what the run found before.

    The main process calibrates and writes; all read, so that all work with the same. With a sharded teacher all
    calibrate.
    """
    wanting = {name: loss for name, loss in distiller.named_losses() if loss.calibration}
    if not wanting or not teachers:
        return
    file = folder.path / CALIBRATION_FILE
    new = not file.exists()
    accelerator.wait_for_everyone()
    if new and (accelerator.is_main_process or any(map(is_sharded, teachers.values()))):
        found = calibrate(distiller, teachers, moved(steps, accelerator.device))
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


INITIALISATION_FILE = "initialisation.json"


def moved(steps: Iterable[Sequence[Batch]], device: torch.device) -> Iterator[list[Batch]]:
    """The batches of each step on a device."""
    return ([batch.to(device) for batch in batches] for batches in steps)


def load_or_initialise(
    config: TrainConfig,
    distiller: Distiller,
    teachers: Teachers,
    first_batches: Iterable[Sequence[Batch]],
    folder: RunFolder,
    accelerator: "Accelerator",
) -> None:
    """Give a new run's student its first weights, and save and print the plan; a resumed run's are left alone.

    The main process works them out, all others get the same.

    Args:
        first_batches: what the losses calibrate on, for a matched plan of heads.
    """
    options, student = config.initialisation, distiller.student
    if options.weights == "random" or folder.newest is not None:
        return
    first_name, teacher = next(iter(teachers.items()))
    device = accelerator.device
    for model in (student, *teachers.values()):
        model.to(device)

    def begin() -> None:
        shd = shd_of(loss for _, loss in distiller.named_losses() if loss.teacher in (None, first_name))
        if shd.calibration:
            calibrate(distiller, teachers, moved(first_batches, device))
        first = moment_batches(distiller.task, config.seed, config.batch_size, options.calibration)
        batches = [batch.to(device) for batch in first]
        plan = initialise(distiller.task, student, teacher, batches, options, shd)
        write_text(folder.path / INITIALISATION_FILE, plan.text())
        for line in plan.lines():
            _log.info("initialisation %s", line)

    run_on_main(begin)
    if accelerator.num_processes > 1:
        for tensor in student.state_dict().values():
            torch.distributed.broadcast(tensor, 0)


def accelerator_of(config: TrainConfig, task: Task[Any]) -> "Accelerator":
    """What a run works with: devices, processes, precision."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    with joining():
        return Accelerator(
            mixed_precision=config.precision,
            cpu=not torch.accelerator.is_available(),
            log_with=config.tracker,
            project_dir=config.run,
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=len(task.passes) == 1),
                InitProcessGroupKwargs(timeout=PATIENCE),
            ],
        )


def load_teachers(config: TrainConfig) -> dict[str, nn.Module]:
    """The frozen teachers by name, in the precision that the config says."""
    teachers = {}
    for name, place in config.teachers.items():
        teacher = loading.load_conditional(place).eval().requires_grad_(False)
        teachers[name] = teacher.bfloat16() if config.teacher_precision == "bf16" else teacher
    return teachers
