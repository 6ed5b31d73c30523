"""One sample through student, teachers and losses before anything is written."""

import torch

from dit_shd.core.devices import own_device
from dit_shd.core.errors import UserError
from dit_shd.distillation import calibration
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.teachers import Teachers
from dit_shd.models import batch_norms
from dit_shd.models.lora import adapted, idle_maps
from dit_shd.models.offload import moved
from dit_shd.training import diagnosis
from dit_shd.training.batches import Batches
from dit_shd.training.config import TrainConfig
from dit_shd.training.fsdp import divides_teachers


def first_sample(config: TrainConfig, distiller: Distiller, teachers: Teachers) -> list[str]:
    """Run student and teachers on a sample, before anything is written; losses get their projectors from its sizes.

    On this process's GPU, where kernels and losses are the run's; models to be divided by FSDP2 stay on the CPU.

    Args:
        config: Of the run.
        distiller: Student and losses.
        teachers: By name.

    Returns:
        Lines about what hardly is meant.

    Raises:
        UserError: Their layers cannot be paired, they give numbers that are not finite, no adapter would learn, or
            the student's batch norms want more samples in a micro batch.
    """
    least = batch_norms.least_batch(distiller.student)
    if not distiller.losses and not teachers and not config.lora.rank and least == 1:
        return []
    at_once = config.micro_batch_size if isinstance(config.micro_batch_size, int) else config.batch_size
    count = min(at_once, config.batch_size, least)
    sample = Batches(distiller.task, config.seed, config.batch_size, 1, fields=distiller.fields).draw(0, range(count))
    device = torch.device("cpu") if divides_teachers(config) else own_device()
    sample = [batch.to(device) for batch in sample]
    for model in (distiller, *teachers.values()):
        moved(model, device)
    norms, idle_ones = batch_norms.kept_statistics(distiller.student), idle_maps(distiller.student, config.lora)
    with batch_norms.wanting_samples(), norms, idle_ones as idle:
        distiller.build(sample, teachers, config.seed)
        distiller.to(device)  # what was built
        calibration.calibrate(distiller, teachers, [sample])
        bad = diagnosis.first_non_finite(distiller, teachers, sample)
    if bad is not None:
        models = "teacher and student give" if teachers else "the student gives"
        raise UserError(f"the first sample: {models} NaN or infinity, first in {bad}")
    if not idle:
        return []
    words = f"{len(idle)} linear maps, first {idle[0]}, did not run by themselves, so that their adapters learn nothing"
    if len(idle) == len(adapted(distiller.student, config.lora)):
        raise UserError(f"lora: {words}; name others, lora.targets")
    return [f"lora: {words}"]
