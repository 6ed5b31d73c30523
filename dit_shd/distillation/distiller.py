"""The student and its losses as one module: what accelerate prepares, and what a training step calls."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dit_shd.core.devices import current_device
from dit_shd.core.errors import UserError
from dit_shd.core.rng import kept_generators
from dit_shd.distillation import recording
from dit_shd.distillation.ensemble import OutputOf, mean
from dit_shd.distillation.losses import Loss
from dit_shd.distillation.records import Forward, Layer, Reads, Term
from dit_shd.distillation.schedule import Weight, at_step, schedule
from dit_shd.distillation.teacher_stream import TeacherStream
from dit_shd.distillation.teachers import Teachers, by_name, chosen
from dit_shd.tasks import Batch, Task, Terms


class Distiller(nn.Module):
    """The student, and the losses with whatever projectors they hold.

    Teachers are arguments of each call and never a part of this module, so they are never synchronised, saved or
    averaged. Each is run once in a pass, if a loss of the pass reads it.

    Args:
        task: What is learned.
        student: The model that learns it.
        losses: The terms of distillation.
        stop_teacher_early: Let a teacher stop after the last layer that losses read, if none reads its output. Not
            for a teacher that is sharded or compiled as a whole: both need a forward that ends.
        base_weight: The factor of the task's own terms, constant or by step.
    """

    def __init__(
        self,
        task: Task[Any],
        student: nn.Module,
        losses: Sequence[Loss] = (),
        stop_teacher_early: bool = True,
        base_weight: Weight = 1.0,
    ):
        super().__init__()
        self.task, self.student, self.losses = task, student, nn.ModuleList(losses)
        self._streams: defaultdict[str, TeacherStream] = defaultdict(partial(TeacherStream, stop_teacher_early))
        """By the teacher's name."""
        self.base_weight = schedule(base_weight, "base_weight")

    def forward(self, batch: Batch, teachers: nn.Module | Teachers | None = None) -> tuple[Tensor, Terms]:
        """The loss of one pass, averaged over the batch, and its terms (detached, not weighted) by name.

        Args:
            batch: One pass.
            teachers: Frozen models by name, or a single one.

        Raises:
            UserError: A loss reads a teacher that was not given.
        """
        terms, logs = self.terms(batch, teachers)
        total = sum(terms.values(), torch.zeros((), device=batch.indices.device))
        idle = [p for name, loss in self.named_losses() if name not in terms for p in loss.parameters()]
        for parameter in idle:  # DDP waits for every parameter in every pass, also for projectors of other passes
            total = total + 0.0 * parameter.sum()
        return total, logs

    @torch.no_grad()
    def build(self, batches: Iterable[Batch], teachers: nn.Module | Teachers | None = None, seed: int = 0) -> None:
        """Make what losses learn and whose sizes are the models' (projectors), before the optimizer is made.

        A loss that has all of it, or learns nothing, is left alone.

        Args:
            batches: The passes of a step, of one sample or more.
            teachers: Frozen models by name, or a single one.
            seed: Of the first weights; the random state of the process stays as it was.

        Raises:
            UserError: The sizes of two layers do not fit a loss, or a teacher is missing.
        """
        known = by_name(teachers)
        with kept_generators(current_device()):
            torch.manual_seed(seed)
            for batch in batches:
                losses = {name: loss for name, loss in self.losses_of(batch.pass_name).items() if loss.learns}
                student = self._forward(batch, losses) if losses else None
                for name, loss in losses.items():
                    teacher = known[chosen(loss.teacher, known, name)[0]] if loss.reads_teacher else None
                    read = None
                    if teacher is not None:
                        layers = recording.named_attention([loss], "teacher", teacher)
                        read = recording.forward(self.task, teacher, batch, loss.reads, layers, "teacher")
                    loss.build(student, read, batch)  # type: ignore[arg-type]

    def terms(self, batch: Batch, teachers: nn.Module | Teachers | None = None) -> tuple[Terms, Terms]:
        """The terms of one pass by name.

        Args:
            batch: One pass.
            teachers: Frozen models by name, or a single one.

        Returns:
            Weighted means over the batch, with their graph; and numbers to log, without. A loss whose schedule has
            ended is not computed and not among them, nor is a teacher run that no other loss reads.

        Raises:
            UserError: A loss reads a teacher that was not given, has the name of a term of the task, or gives no value
                for each sample that depends on something that is trained.
        """
        losses = self.losses_of(batch.pass_name, batch.step)
        student = self._forward(batch, losses)
        base = {name: value.mean() for name, value in self.task.losses(student, batch).items()}
        logs = {name: term.detach() for name, term in base.items()}
        base_weight = at_step(self.base_weight, batch.step)
        terms = {
            name: base_weight * term if base_weight or bool(torch.isfinite(term)) else _nothing(self.student, term)
            for name, term in base.items()
        }
        both = [name for name in losses if name in base]
        if both:
            raise UserError(
                f"losses.{both[0]}: a term of the task {type(self.task).__name__} has that name; rename the loss's file"
            )
        learned = self._learned(batch, by_name(teachers), losses, student)
        for name, loss in losses.items():
            term = learned[name]
            if not isinstance(term, Term):
                raise UserError(f"losses.{name}: term() wants to return Term(value), found {type(term).__name__}")
            mean, weight = term.value.mean(), loss.weight_at(batch.step)
            _check_term(name, term.value, len(batch.indices), self.student if weight else None)
            terms[name] = weight * mean if weight else _nothing(loss, mean)
            logs[name] = mean.detach()
            logs |= {f"{name}/{key}": value for key, value in term.logs.items()}
        return terms, logs

    def _forward(self, batch: Batch, losses: Mapping[str, Loss]) -> Forward:
        """The student's forward, with what some losses read of it."""
        layers = recording.named_attention(losses.values(), "student", self.student)
        read = frozenset[Reads]().union(*(loss.reads for loss in losses.values()))
        paired = recording.pairs_blocks(losses.values())
        forward = recording.forward(self.task, self.student, batch, read, layers, paired=paired)
        recording.check_named(losses.values(), "student", self.student, forward.attention)
        # what attention put out is read of teachers alone; where blocks run again, nothing else would keep it
        return replace(forward, attention={name: _without_output(layer) for name, layer in forward.attention.items()})

    def _learned(
        self, batch: Batch, teachers: Teachers, losses: Mapping[str, Loss], student: Forward
    ) -> dict[str, Term]:
        """The term of every loss, teacher by teacher."""
        readers: dict[str, dict[str, Loss]] = {}
        terms: dict[str, Term] = {}
        outputs: dict[str, list[OutputOf]] = {}
        for name, loss in losses.items():
            read = chosen(loss.teacher, teachers, name) if loss.reads_teacher else []
            if len(read) == 1:
                readers.setdefault(read[0], {})[name] = loss
            elif read:
                outputs[name] = [OutputOf(loss.guidance) for _ in read]
                for teacher, output in zip(read, outputs[name]):
                    readers.setdefault(teacher, {})[f"{name} of {teacher}"] = output
            else:
                terms[name] = loss.term(student, None, batch)  # type: ignore[arg-type]
        for teacher, reading in readers.items():
            of_teacher = self._streams[teacher].terms(self.task, teachers[teacher], batch, reading, student)
            terms |= {name: term for name, term in of_teacher.items() if name in losses}
        return terms | {name: losses[name].term(student, mean(read), batch) for name, read in outputs.items()}

    @property
    def fields(self) -> frozenset[str]:
        """The fields of the dataset that losses read beside what the task draws."""
        return frozenset[str]().union(*(loss.fields for _, loss in self.named_losses()))

    @property
    def calibration(self) -> int:
        """The number of steps whose batches losses are calibrated on."""
        return max((loss.calibration for _, loss in self.named_losses()), default=0)

    def losses_of(self, pass_name: str, step: int | None = None) -> dict[str, Loss]:
        """The losses that are terms of a pass, by name; at a step of training without those that have ended."""
        losses = {name: loss for name, loss in self.named_losses() if loss.takes_part(pass_name)}
        return losses if step is None else {name: loss for name, loss in losses.items() if not loss.ended(step)}

    def named_losses(self) -> list[tuple[str, Loss]]:
        """The losses by the name of their file; a second one of a kind gets a number."""
        names: list[tuple[str, Loss]] = []
        for loss in self.losses:
            base = type(loss).__module__.rpartition(".")[2]
            count = sum(name.split("#")[0] == base for name, _ in names)
            names.append((f"{base}#{count + 1}" if count else base, loss))  # type: ignore[arg-type]
        return names


def _without_output(layer: Layer) -> Layer:
    capture = layer.attention
    assert capture is not None, "a layer that was read as attention"
    return replace(layer, attention=capture.with_tensors(capture.query, capture.key, capture.value))


def _check_term(name: str, value: Tensor, samples: int, student: nn.Module | None) -> None:
    """Refuse a value of a loss that is not one for each sample, or that is not 0 and trains nothing.

    Args:
        name: Of the loss.
        value: What it gave.
        samples: b.
        student: What it is to train; None if it has no weight.

    Raises:
        UserError: Saying which of both it is.
    """
    if value.ndim != 1 or len(value) % samples:  # frames and windows of a sample may have values of their own
        raise UserError(f"losses.{name}: wanted a value for each of {samples} samples, found {list(value.shape)}")
    trains = student is not None and any(p.requires_grad for p in student.parameters())
    if trains and torch.is_grad_enabled() and not value.requires_grad and bool(value.any()):
        raise UserError(
            f"losses.{name}: depends on nothing that is trained: it is computed without a graph (detach, no_grad, "
            "argmax), or from layers that come before the first one that is trained"
        )


def _nothing(learner: nn.Module, mean: Tensor) -> Tensor:
    """A term of weight 0: 0 whatever its value and gradient, whose infinity or NaN times 0 would be NaN.

    Args:
        learner: The loss, or the student of a term of the task.
        mean: Over the batch.
    """
    gathered = (p for p in learner.parameters() if not hasattr(p, "full_tensor"))  # slices of blocks that did not run
    unused = [0 * p.sum() for p in gathered]  # DDP waits for the gradient of each
    return torch.stack(unused).sum() if unused else torch.zeros_like(mean)
