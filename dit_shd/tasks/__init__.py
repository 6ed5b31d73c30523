"""What is learned, one file each. Trainer, Distiller, losses and profilers know a task by the names of this file.

A step of training draws one Batch or more (its passes, each with a backward of its own), runs student and teacher on it
in the same way (`predict`), and compares (`losses`, and the losses of distillation).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin, PluginFolder
from dit_shd.core.rng import Draws
from dit_shd.data.datasets import Dataset
from dit_shd.data.latent_origin import Kept
from dit_shd.data.pipeline_record import PipelineRecord
from dit_shd.diffusion.guidance import Guidance

Terms = dict[str, Tensor]
"""Values by name."""


@dataclass(frozen=True, eq=False)
class Batch:
    """The input of both models in one pass; a task's own batch adds its tensors."""

    pass_name: str
    """A step is one pass or more, each with its own backward."""
    step: int
    """Of training, from 0: schedules of loss weights read it."""
    indices: Tensor
    """Which samples of the dataset these are [b]."""
    data: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)
    """Further fields of the dataset [b,...], those that losses read (`Loss.fields`)."""

    def row_weight(self, tokens: int) -> Tensor | None:
        """The factor [b,n] of every query row in losses on attention, 0 for rows that take no part; None: 1 each.

        Args:
            tokens: Query tokens n of the layer.

        Raises:
            UserError: A layer of other tokens than the batch weighs.
        """
        return None

    def is_of_image(self, layer: str) -> bool:
        """Whether the queries of an attention layer are an image's, alone or beside those of text."""
        return True

    def image_keys(self, rows: int, keys: int) -> slice | None:
        """Which keys of a layer are the image's, where its own modules do not tell it; None: all, as far as is known.

        Args:
            rows: Query tokens n of the layer.
            keys: Key tokens m of the layer.

        Raises:
            UserError: They are of text and image, and the image's are not at one place.
        """
        return None

    def prediction_weight(self) -> Tensor | None:
        """The factor [b,n] of every token's prediction in losses on outputs; None: 1 each."""
        return None

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(device, non_blocking=True) for k, v in tensors.items() if isinstance(v, Tensor)}
        data = {k: v.to(device, non_blocking=True) for k, v in self.data.items()}
        return replace(self, **moved, data=data)


B = TypeVar("B", bound=Batch)


@dataclass(frozen=True, eq=False)
class Output:
    """What the base loss and output distillation compare."""

    prediction: Tensor
    """Noise or velocity [b,c,y,x], logits [b,k] or [b,n,k], in float32."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """What else the model predicts: a learned variance, say."""


@dataclass(frozen=True)
class TeacherFinding:
    """The answer to one question about a teacher."""

    message: str = ""
    """For the log, in any case; empty for none."""
    fault: str | None = None
    """What it does that a good teacher does not, with the likely reasons."""


class Task(ABC, Generic[B]):
    """What is learned. The keywords of a task's `__init__` are its keys in YAML."""

    batch_type: ClassVar[type[Batch]] = Batch
    """Kept batches are read back as this."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Fields of the dataset that are drawn."""
    passes: tuple[str, ...] = ("plain",)
    """Of a step, in order, as this task is configured."""
    all_passes: ClassVar[frozenset[str]] = frozenset({"plain"})
    """That there can be."""
    resumable: ClassVar[frozenset[str]] = frozenset()
    """Its keys that may differ when a run is resumed."""
    generates: ClassVar[bool] = False
    """Whether a model that learned it is sampled from."""
    prompted: ClassVar[bool] = False
    """Whether its models are sampled from by prompts."""
    measured_by: ClassVar[str] = ""
    """The command that scores its runs, where they are not sampled from."""
    guides: ClassVar[bool] = False
    """Whether models have a condition that can be left out: `unconditional` and `guided` work."""
    draws_beside: bool = True
    """Whether `draw` may run in a thread beside a step: it has no draws of the process's own generators, which
    recomputed blocks (checkpoints of torch) and new models use at the same time."""
    evaluates_averages: ClassVar[bool] = False
    """Whether every average of the weights is evaluated while training, or the first alone."""
    dataset: Dataset
    record: PipelineRecord | None = None
    """Of the pipeline that data and students are of; None for others."""

    def check_data(self, dataset: Dataset) -> None:
        """Refuse data from which the task cannot learn, before anything else of them is read.

        Args:
            dataset: What is to be learned from.

        Raises:
            UserError: The data lack a field that is needed.
        """
        missing = sorted(self.needs - dataset.fields)
        if missing:
            raise UserError(
                f"task: needs {', '.join(missing)} of the data, which have {', '.join(sorted(dataset.fields))}; "
                "choose another task or data"
            )

    def use(self, dataset: Dataset, student: nn.Module) -> None:
        """Take the data, and the sizes of the student on which a batch depends.

        Args:
            dataset: What is learned from.
            student: What learns.

        Raises:
            UserError: The data lack a field that is needed.
        """
        self.check_data(dataset)
        self.dataset, self.record = dataset, dataset.record

    def expect(self, data: Plugin) -> None:
        """Take from the config of data that are not read the sizes that `example` depends on.

        Args:
            data: The run's.
        """

    def student_options(self) -> Mapping[str, Any]:
        """Keywords of the student's family that follow from the task, where the config says nothing else."""
        return {}

    def check_model(self, role: str, model: nn.Module) -> None:
        """Refuse a model that can never learn or teach this task, whatever the data, before anything is written.

        Args:
            role: Of the model, for the message: student or teacher.
            model: Perhaps without weights, on the meta device.

        Raises:
            UserError: It cannot.
        """

    @abstractmethod
    def check(self, role: str, model: nn.Module) -> None:
        """Refuse a model that does not fit task and data, before anything is written.

        Args:
            role: Of the model, for the message: student or teacher.
            model: With its weights.

        Raises:
            UserError: It does not fit.
        """

    def check_together(self, models: Mapping[str, nn.Module]) -> None:
        """Refuse keys of the task that are of none of a run's models.

        Args:
            models: By role, each of which `check` has passed.

        Raises:
            UserError: Naming the key.
        """

    def check_start(self, source: str, model: nn.Module) -> None:
        """Refuse a model whose weights would mean something else in a student that begins with them.

        Args:
            source: Of the model, as `from` has it.
            model: With its weights.

        Raises:
            UserError: They would.
        """

    def remarks(self, student: nn.Module) -> Sequence[str]:
        """Warnings about data and student, for the log before training."""
        return ()

    def describe(self, student: nn.Module) -> None:
        """Write into a student's config what belongs to its data, for its export."""

    def check_teacher(
        self, teacher: nn.Module, seed: int, device: torch.device, measure: bool
    ) -> Iterator[TeacherFinding]:
        """Whether a teacher predicts what the task takes it to predict, one question after the other.

        Args:
            teacher: A model that `check` has passed.
            seed: The run's.
            device: Where the teacher goes.
            measure: Also run it on the first samples; else only its config is read.
        """
        yield from ()

    @abstractmethod
    def draw(self, draws: Draws) -> Sequence[B]:
        """The passes of some positions of one step: a pure function."""

    @abstractmethod
    def predict(self, model: nn.Module, batch: B) -> Output:
        """Run a model on a batch: teacher and student in the same way."""

    def unconditional(self, batch: B) -> B:
        """The same batch without the condition (class, text), for classifier-free guidance.

        Args:
            batch: One pass.

        Raises:
            UserError: There is nothing to leave out.
        """
        raise UserError(f"guidance: {type(self).__name__} has no condition that could be left out")

    def guided(self, conditional: Output, unconditional: Output, batch: B, guidance: Guidance) -> Output:
        """What a model predicts under classifier-free guidance (arXiv 2207.12598).

        Args:
            conditional: Its output on a batch; what is not guided is taken from it.
            unconditional: Its output on the same batch without the condition.
            batch: One pass.
            guidance: The weight along time.

        Raises:
            UserError: The task has no guidance.
        """
        raise UserError(f"guidance: {type(self).__name__} has no condition that could be left out")

    @abstractmethod
    def losses(self, output: Output, batch: B) -> Terms:
        """The base terms [b] by name; they need no teacher."""

    @abstractmethod
    def example(self, model: nn.Module, images: int, device: torch.device) -> Sequence[B]:
        """Passes of a step for a model's shape, to count, time and look at it: values mean nothing, sizes are means."""

    def tokens_seen(self, model: nn.Module, batch: B) -> int:
        """Tokens of a sample of a batch in the first layers of a model; 0 where the number means nothing."""
        return 0

    def check_evaluation(self, student: nn.Module, kept: Kept | None) -> None:
        """Refuse before training what could not be evaluated after days of it.

        Args:
            student: What would be evaluated.
            kept: The autoencoder of the data's latents; None where there are no data (yet), for checks without them.

        Raises:
            UserError: The evaluation cannot work.
        """

    def evaluate(self, student: nn.Module, run: Path, step: int) -> dict[str, float] | None:
        """Figures of a student, in the main process; every process calls it. What is finished is not done again.

        Args:
            student: With the averaged weights.
            run: The run folder, for the files that the evaluation leaves.
            step: Of training, in their names.

        Returns:
            The figures by name; None in other processes, or where there are none.
        """
        return None

    def evaluated(self, run: Path, step: int, logged: bool) -> bool:
        """Whether evaluate() has nothing left to do after a step.

        Args:
            run: The run folder.
            step: The step that it was of.
            logged: Whether its figures are in the run's log.
        """
        return logged


TASKS: PluginFolder[Task[Any]] = PluginFolder(__name__, Task, "task")
