"""What is learned, one file each. Trainer, Distiller, losses and profilers know a task by the names of this file.

A step of training draws one Batch or more (its passes, each with a backward of its own), asks student and teacher
alike (`predict`), and compares (`losses`, and whatever distillation adds).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import PluginFolder
from dit_shd.core.rng import Draws
from dit_shd.data.datasets import Dataset
from dit_shd.data.latent_origin import Kept

Terms = dict[str, Tensor]
"""Values by name."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Everything both models see in one pass; a task's own batch adds its tensors."""

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
            tokens: n of the layer.

        Raises:
            UserError: a layer of other tokens than the batch weighs.
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
class Opinion:
    """What was found of a teacher."""

    told: str = ""
    """To be said in any case."""
    fault: str | None = None
    """What it does that a good one does not, with the likely reasons."""


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
    dataset: Dataset

    def check_data(self, dataset: Dataset) -> None:
        """Whether the task can learn from some data at all; asked before anything else of them is read.

        Raises:
            UserError: the data lack a field that is needed.
        """
        missing = sorted(self.needs - dataset.fields)
        if missing:
            raise UserError(
                f"task: needs {', '.join(missing)} of the data, which have {', '.join(sorted(dataset.fields))}; "
                "choose another task or data"
            )

    def use(self, dataset: Dataset, student: nn.Module) -> None:
        """Take the data, and what of the student's shape a batch depends on.

        Raises:
            UserError: the data lack a field that is needed.
        """
        self.check_data(dataset)
        self.dataset = dataset

    def check_model(self, role: str, model: nn.Module) -> None:
        """Whether a model can learn or teach this task at all; UserError before anything is written."""

    @abstractmethod
    def check(self, role: str, model: nn.Module) -> None:
        """Whether a model fits task and data; UserError before anything is written."""

    def remarks(self, student: nn.Module) -> Sequence[str]:
        """What is to be said of data and student before training."""
        return ()

    def describe(self, student: nn.Module) -> None:
        """Write into a student's config what of the data goes with it when it is exported."""

    def judge(self, teacher: nn.Module, seed: int, device: torch.device, measure: bool) -> Iterator[Opinion]:
        """Whether a teacher does what we think, one question after the other.

        Args:
            measure: also ask it about the run's first samples; else only what its config tells is looked at.
        """
        yield from ()

    @abstractmethod
    def draw(self, draws: Draws) -> Sequence[B]:
        """The passes of some positions of one step: a pure function."""

    @abstractmethod
    def predict(self, model: nn.Module, batch: B) -> Output:
        """Ask a model, teacher and student alike."""

    @abstractmethod
    def losses(self, output: Output, batch: B) -> Terms:
        """The base terms [b] by name; they need no teacher."""

    @abstractmethod
    def example(self, model: nn.Module, images: int, device: torch.device) -> Sequence[B]:
        """Passes of a step for a model's shape, for counting and timing: values mean nothing, sizes are the mean's."""

    def tokens_seen(self, model: nn.Module, batch: B) -> int:
        """Tokens that the first layers of a model see of a sample of a batch; 0 where that says nothing."""
        return 0

    def check_evaluation(self, student: nn.Module, kept: Kept | None) -> None:
        """Refuse before training what could not be evaluated after days of it.

        Args:
            kept: the autoencoder of the data's latents; None where there are no data (yet), for what can be told then.
        """

    def evaluate(self, student: nn.Module, run: Path, step: int) -> dict[str, float] | None:
        """Figures of a student in the main process, whatever of them are not there yet; every process calls it.

        Args:
            run: the run folder, for what the evaluation leaves.
        """
        return None

    def evaluated(self, run: Path, step: int, logged: bool) -> bool:
        """Whether evaluate() has nothing left to do after a step. logged: whether its figures are in the run's log."""
        return logged


TASKS: PluginFolder[Task[Any]] = PluginFolder(__name__, Task, "task")
