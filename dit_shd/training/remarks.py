"""Lines about what a run's config allows and hardly means."""

import logging
from collections.abc import Iterable

from dit_shd.core.run_files import RUN_CONFIG
from dit_shd.core.yaml_files import read_yaml
from dit_shd.distillation.initialisation import initialise as initialisation
from dit_shd.models import batch_norms
from dit_shd.models.lora import remark
from dit_shd.training import checks, optim, validation
from dit_shd.training.checkpoint import step_of
from dit_shd.training.ema import too_slow
from dit_shd.training.parts import Parts
from dit_shd.training.run_folder import RunFolder

_log = logging.getLogger("dit_shd")


def warn(parts: Parts, remarks: Iterable[str] = ()) -> None:
    """Log what is allowed and hardly meant, `remarks` among it."""
    config, newest, jump, begins = parts.config, RunFolder(parts.config.run).newest, None, []
    if newest is None:
        taught = parts.losses_of_teacher, parts.student, parts.teacher
        begins = [f"initialisation: {line}" for line in initialisation.remarks(config.initialisation, *taught)]
    else:
        planned = read_yaml(config.run / RUN_CONFIG).get("steps", config.steps)
        planned = planned if isinstance(planned, int) else config.steps  # what is no number is refused further on
        jump = optim.jump(config.optimizer, step_of(newest), planned, config.steps)
    slow = too_slow(config.ema_rates, config.steps, config.ema_warmup)
    student, still = parts.student, checks.untrained(config, parts.losses, parts.student)
    lines = (
        slow,
        jump,
        batch_norms.remark(student),
        validation.incomparable(config),
        still,
        remark(student, config.lora),
    )
    for line in (
        *filter(None, lines),
        *remarks,
        *begins,
        *optim.remarks(config.optimizer, config.steps),
        *parts.task.remarks(student),
    ):
        _log.warning("%s", line)
