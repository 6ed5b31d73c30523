"""Saving a run and resuming it: the checkpoint, and the students that are exported with it."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin
from torch import Tensor

from dit_shd.core.distributed import run_on_main
from dit_shd.core.errors import UserError, error_line
from dit_shd.core.memory import give_back
from dit_shd.core.yaml_files import dump
from dit_shd.data.datasets import DATASETS
from dit_shd.data.latent_origin import read_record
from dit_shd.models import export
from dit_shd.models.cards import RunFacts
from dit_shd.models.families import FAMILIES
from dit_shd.models.lora import add_lora, merge_lora
from dit_shd.models.provenance import Provenance, inherited, provenance
from dit_shd.profiling.throughput import Throughput
from dit_shd.tasks import Task
from dit_shd.training.config import TrainConfig
from dit_shd.training.ema import share_of_first
from dit_shd.training.nan_guard import Guard
from dit_shd.training.run_folder import RunFolder
from dit_shd.training.state import TrainState, average_file
from dit_shd.training.step import Step
from dit_shd.training.warm_start import read_origin

if TYPE_CHECKING:
    from accelerate import Accelerator


class Checkpointer:
    """The service that saves. Every process calls its methods; the main one writes.

    A checkpoint comes first and the students after it, so after a kill between them resume() makes these anew.

    Args:
        config: Of the run.
        task: Describes the data in an exported student.
        folder: Of the run.
        state: The tensors of a checkpoint.
        guard: Its count of bad steps is saved, too.
        throughput: The time of a save is left out of it.
        accelerator: Of the run.
    """

    def __init__(
        self,
        config: TrainConfig,
        task: Task[Any],
        folder: RunFolder,
        state: TrainState,
        guard: Guard,
        throughput: Throughput,
        accelerator: "Accelerator",
    ):
        self.config, self.task, self.folder, self.state = config, task, folder, state
        self.guard, self.throughput, self.accelerator = guard, throughput, accelerator
        self.step = 0
        """The last that was saved, from 1."""

    @cached_property
    def _facts(self) -> RunFacts:
        """Everything that the cards of all exports share."""
        config = self.config
        return RunFacts(
            config=dump(config),
            ema_warmup=config.ema_warmup,
            dataset=DATASETS.find(config.data.name).described(**config.data.options),
            origin=inherited([*self._start, *(provenance(teacher) for teacher in config.teachers.values())]),
            latents=read_record(self.folder.path),
            pipeline=self.task.record,
        )

    @property
    def _start(self) -> list[Provenance]:
        """What is behind the weights that the run began with, if they were another run's, or pre-trained."""
        origin, options = read_origin(self.folder.path), self.config.student.options
        if origin is not None:
            return [origin]
        source = options.get("source") if options.get("pretrained", True) else None
        return [] if source is None else [provenance(str(source))]

    def after(self, step: Step) -> None:
        config, number = self.config, step.number
        # a kill while it is evaluated loses no step
        periods = filter(None, (config.checkpoint_every, config.keep_every, config.validate_every))
        if step.stopping or number == config.steps or any(number % period == 0 for period in periods):
            self.save(number)
            self.throughput.pause()

    def save(self, done: int) -> None:
        """Save the run.

        Args:
            done: The last step that was taken, from 1.

        Raises:
            UserError: It could not be written; the checkpoints before it are as they were.
        """
        if done == self.step:
            return
        tensors, optimizer = {}, {}
        writes = self.accelerator.is_main_process
        if writes or self.config.sharding != "no":  # slices are gathered from all
            tensors, optimizer = self.state.tensors(writes), self.state.optimizer_state(writes)
        numbers = {**self.state.numbers(), "skipped_steps": self.guard.skipped}
        keep, keep_every = self.config.keep_checkpoints, self.config.keep_every

        def write() -> None:
            self.folder.save(done, tensors, optimizer, numbers, keep, keep_every)
            self._export(tensors, done)

        run_on_main(write)
        give_back()
        self.step = done

    def resume(self) -> int:
        """Take up the newest sound checkpoint.

        Returns:
            Its step; 0 where there is none.

        Raises:
            UserError: There are damaged ones alone, or it is of another run.
        """
        name = run_on_main(self.folder.pick)
        saved = self.folder.load(name) if name else None
        self.step = saved["step"] if saved else 0
        run_on_main(lambda: self.folder.forget_after(self.step))
        if saved is None:
            return 0
        try:
            self.state.restore(saved)
            self.guard.skipped = int(saved["skipped_steps"])
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{self.folder.path}: {name} does not fit this run ({error_line(error)})") from error
        run_on_main(lambda: self._export(saved, self.step, again=False))
        return self.step

    def _export(self, tensors: dict[str, dict[str, Tensor]], done: int, again: bool = True) -> None:
        names = {name: name.removeprefix("student.") for name in tensors["distiller"] if name.startswith("student.")}
        student_tensors = {short: tensors["distiller"][name] for name, short in names.items()}  # for its buffers
        for rate in self.state.averages.rates:
            folder = self.folder.student_of(rate, self.config.ema_rates)
            if again or export.exported_step(folder) != done:
                student = averaged(self.config, self.task, {**student_tensors, **tensors[average_file(rate)]})
                share = share_of_first(rate, done, self.config.ema_warmup)
                export.export(student, folder, self._facts, done, rate, share)


def averaged(config: TrainConfig, task: Task[Any], tensors: dict[str, Tensor]) -> ModelMixin:
    """A student with averaged weights, and with the data's names in its config.

    Args:
        config: Of the run.
        task: Describes the data in the student's config.
        tensors: The averages by name, and the student's other buffers: a table of positions that it has of its
            teacher.
    """
    student = FAMILIES.build(config.student, "student")
    task.describe(student)
    if config.lora.rank:
        add_lora(student, config.lora)
    student.load_state_dict({k: v.cpu() for k, v in tensors.items()}, strict=False)
    merge_lora(student)
    return student.eval()
