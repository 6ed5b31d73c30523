"""Everything that a training config names: task, student, losses, teachers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dit_shd.core.devices import own_device
from dit_shd.data.latent_origin import Kept
from dit_shd.diffusion.pipeline_scheduler import check_teacher
from dit_shd.distillation.losses import Loss
from dit_shd.distillation.teachers import Teachers
from dit_shd.models import loading
from dit_shd.models.offload import offload_blocks
from dit_shd.models.quantization import is_quantised
from dit_shd.tasks import Task
from dit_shd.training.config import TrainConfig
from dit_shd.training.warm_start import WarmStart


@dataclass(frozen=True, eq=False)
class Parts:
    """Everything that a config names, built."""

    config: TrainConfig
    """With every default written out, and the student's keywords that follow from data and task."""
    task: Task[Any]
    student: nn.Module
    losses: Sequence[Loss]
    teachers: Teachers
    kept: Kept
    """The autoencoder of the data's latents."""
    start: WarmStart | None = None
    """The weights of another run that the student of a new one begins with."""

    @property
    def teacher(self) -> nn.Module | None:
        """The first teacher, from which a student can be initialised."""
        return next(iter(self.teachers.values()), None)

    @property
    def losses_of_teacher(self) -> list[Loss]:
        """The losses that read the first teacher."""
        names = (None, next(iter(self.teachers), None))
        return [loss for loss in self.losses if loss.teacher in names]


def weights_of_files(config: TrainConfig) -> Mapping[str, Tensor] | None:
    """The first teacher's tensors as its files have them, on the CPU, where the teacher itself holds rounded ones.

    Args:
        config: With the places of the teachers, and their precision; None where that holds what the files do.
    """
    source = next(iter(config.teachers.values()))
    if config.teacher_precision == "no":
        return None
    stored = loading.stored_precision(source)
    return None if stored == config.teacher_precision else loading.load(source, stored).state_dict()


def load_teachers(config: TrainConfig, task: Task[Any]) -> dict[str, nn.Module]:
    """The frozen teachers by name, in the precision that the config says.

    Args:
        config: With the places of the teachers.
        task: What they are to teach.

    Raises:
        UserError: One is missing, or cannot teach the task.
    """
    teachers: dict[str, nn.Module] = {}
    for name, source in config.teachers.items():
        read_to = own_device() if is_quantised(config.teacher_precision) else "cpu"  # others move later
        teacher = loading.load(source, config.teacher_precision, read_to).eval().requires_grad_(False)
        task.check_model(source, teacher)
        check_teacher(source, teacher, config.task.options)
        if config.teacher_offload == "blocks":
            offload_blocks(teacher, own_device())
        teachers[name] = teacher
    return teachers
