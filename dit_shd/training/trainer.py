"""The training loop: a generator of steps, so that the caller decides what to show.

for step in train(config):
    print(step.number, step.metrics["loss"])
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dit_shd.core import dtensor, rng
from dit_shd.core.errors import UserError
from dit_shd.core.prefetch import prefetch
from dit_shd.core.signals import StopRequest
from dit_shd.models.batch_norms import Statistics, kept_statistics, restore, statistics
from dit_shd.training import diagnosis, fsdp, optim, setup
from dit_shd.training.batches import Passes
from dit_shd.training.config import TrainConfig
from dit_shd.training.diagnosis import Diagnosis
from dit_shd.training.gradient_norms import gradient_norms
from dit_shd.training.run import Run
from dit_shd.training.step import Step
from dit_shd.training.surroundings import refuse_autocast

Terms = dict[str, Tensor]


def train(config: TrainConfig) -> Iterator[Step]:
    """Train, yielding after every optimizer step; resumes from the run folder's newest checkpoint.

    Args:
        config: Of the run.

    Returns:
        The steps; the next one is taken when it is asked for.

    Raises:
        UserError: A config that cannot work; nothing has been written then.
    """
    return Trainer.from_config(config).run_steps()


class Trainer:
    """Takes the steps of a run; see run_steps for the loop.

    Args:
        run: What setup.build made.
    """

    def __init__(self, run: Run):
        self.config, self.task, self.folder, self.first_step = run.config, run.task, run.folder, run.first_step
        self.distiller, self.teachers, self.state, self.batches = run.distiller, run.teachers, run.state, run.batches
        self.accelerator, self.services, self.decodes = run.accelerator, run.services, run.decodes
        self.stop = StopRequest()
        """A request to end after the step that is being taken, saved; the command line lets signals make it."""

    @classmethod
    def from_config(cls, config: TrainConfig) -> "Trainer":
        """Build a run, or take up one that is in its folder.

        Args:
            config: Of the run.

        Raises:
            UserError: A config that cannot work; nothing has been written then.
        """
        return cls(setup.build(config))

    @property
    def student(self) -> nn.Module:
        """The model that learns."""
        return self.state.distiller.student

    def run_steps(self) -> Iterator[Step]:
        """The steps that are left; the folder is released when they end."""
        try:
            yield from self._steps()
        finally:
            self.folder.release()

    def _steps(self) -> Iterator[Step]:
        left = range(self.first_step, self.config.steps)
        ahead = prefetch if self.task.draws_beside else map
        batches = ahead(self.batches.at, self.batches.places_of(left))
        for number in left:
            self._check_precision()
            optim.set_learning_rate(self.state.optimizer, self.config.optimizer, number, self.config.steps)
            before = statistics(self.state.distiller)  # a forward changes them before its step is known to be good
            terms = self.update(number, self.accumulate(batches), before)
            step = Step(number + 1, terms, stopping=self.stop.agreed())
            for service in self.services:
                service.after(step)
            yield step
            if step.stopping:
                break
        for tracker in self.accelerator.trackers:  # and not end_training(), after which no other run can begin here
            tracker.finish()

    def _check_precision(self) -> None:
        """Refuse to go on in the precision of another run, which accelerate shares in a process, or of the caller.

        Raises:
            UserError: A run of another precision has begun in this process since, or autocast is on.
        """
        refuse_autocast(self.accelerator.device)
        precision = self.accelerator.mixed_precision
        if precision != self.config.precision:
            raise UserError(
                f"precision: a run with {precision} has begun in this process while this one, with "
                f"{self.config.precision}, had steps left; end one before the other, or take a process for each"
            )

    def accumulate(self, batches: Iterator[Passes]) -> Terms:
        """Gradients of one global batch: micro batch by micro batch and pass by pass; returns this process's means."""
        rounds, device = self.batches.rounds, self.accelerator.device
        sums: Terms = {}
        for i in range(rounds):
            for batch in next(batches):
                name = batch.pass_name
                last = i == rounds - 1 and name == self.task.passes[-1]
                place = i * self.batches.processes + self.batches.process
                rng.seed_torch(self.config.seed, f"forward/{name}", batch.step, place)
                with fsdp.synchronised(self.distiller, last):
                    with self.accelerator.autocast():
                        loss, logs = self.distiller(batch.to(device), self.teachers)
                    self.accelerator.backward(loss / rounds)
                values = {"loss": loss.detach(), **{f"{name}/{key}": value for key, value in logs.items()}}
                for key, value in values.items():
                    part = value.float() / rounds if rounds > 1 else value.float()
                    sums[key] = sums[key] + part if key in sums else part
        return sums

    def update(self, number: int, terms: Terms, before: Statistics) -> Terms:
        """Let the gradients reach the weights, if they are finite; the step's terms, of which a bad step has none.

        Args:
            number: Of the step, from 0.
            terms: Of the step, in this process.
            before: The statistics of batch norms before the step, which a bad one leaves as they were.
        """
        every = self.config.gradient_norms_every
        if every and (number + 1) % every == 0:
            terms |= self._gradient_norms(number)
        terms["grad_norm"] = self._clip()
        good = self.services.guard.finite(terms["loss"], terms["grad_norm"])
        if good:
            self.state.optimizer.step()
            torch.clear_autocast_cache()  # a block around the run, even of enabled=False, would keep the step's weights
            self.state.averages.step(self.student, number)
        else:
            restore(before)
            self._leave_out(number)
        self.state.optimizer.zero_grad()
        return terms if good else {}

    def _gradient_norms(self, number: int) -> Terms:
        """By pass and term, of this process's first micro batch of a step."""
        norms: Terms = {}
        scale = 1.0 if self.accelerator.scaler is None else self.accelerator.scaler.get_scale()
        for batch in self.batches.at(next(self.batches.places(number))):
            with self.accelerator.autocast(), kept_statistics(self.state.distiller):
                by_term = gradient_norms(self.state.distiller, batch.to(self.accelerator.device), self.teachers, scale)
            norms |= {f"grad_norm/{term}": norm for term, norm in by_term.items()}
        return norms

    def _clip(self) -> Tensor:
        """The norm of all gradients before they are clipped."""
        limit = self.config.optimizer.clip or float("inf")
        norm = self.accelerator.clip_grad_norm_(self.distiller.parameters(), limit)
        return dtensor.full_tensor(torch.as_tensor(norm))

    def _leave_out(self, number: int) -> None:
        """Keep the batch of a bad step and what it was.

        Raises:
            UserError: No more steps may be left out; the run is saved as it was before this one.
        """
        error = self.services.guard.skip(number, self.diagnose(number), lambda: self.batches.whole(number))
        if error is not None:
            self.services.checkpointer.save(number)
            raise error

    def diagnose(self, number: int) -> Diagnosis:
        """Take a step again, its weights left alone, and find what is not finite, in whichever process.

        Args:
            number: Of the step, from 0.
        """
        self.state.optimizer.zero_grad()
        with kept_statistics(self.state.distiller):
            terms = self.accumulate(map(self.batches.at, self.batches.places(number)))
            again = map(self.batches.at, self.batches.places(number))
            return diagnosis.diagnose(self.state.distiller, self.teachers, again, terms, self.accelerator)
