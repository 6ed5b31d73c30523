"""The student and its losses as one module: what accelerate prepares, and what a training step calls."""

from collections.abc import Sequence
from contextlib import ExitStack, suppress

import torch
from torch import Tensor, nn

from dit_shd.attention.capture import Capture, Captures
from dit_shd.attention.recording.attach import capture
from dit_shd.attention.recording.sharded import KeptWeights
from dit_shd.core.dtensor import is_sharded
from dit_shd.diffusion.objectives import noise_error, split, variational_bits
from dit_shd.diffusion.schedule import Schedule
from dit_shd.distillation.losses import Listener, Loss, Term, View
from dit_shd.tasks.diffusion import Batch, PassName, predict


class Distiller(nn.Module):
    """The student, and the losses with whatever projectors they hold.

    The teacher is a guest: it comes in with each call and is never a part of this module, so it is never
    synchronised, saved or averaged.

    Args:
        gamma: min-SNR weight of the noise error; None for no weight.
        cut_teacher: let the teacher stop after the last layer that losses look at, if none looks at its output. Not
            for a teacher that is compiled or sharded: both need a forward that ends.
    """

    def __init__(
        self,
        student: nn.Module,
        losses: Sequence[Loss],
        schedule: Schedule,
        gamma: float | None = 5.0,
        cut_teacher: bool = True,
    ):
        super().__init__()
        self.student = student
        self.losses = nn.ModuleList(losses)
        self.schedule, self.gamma, self.cut_teacher = schedule, gamma, cut_teacher
        self._teacher_layers: dict[PassName, list[str]] = {}
        """The teacher's layers in the order in which they ran; known after the first call of a pass."""
        self._kept = KeptWeights()

    def forward(
        self, batch: Batch, pass_name: PassName = "plain", teacher: nn.Module | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one pass, averaged over the batch, and its terms (detached, not weighted) by name."""
        terms, logs = self.terms(batch, pass_name, teacher)
        total = sum(terms.values(), torch.zeros((), device=batch.x_0.device))
        idle = [p for name, loss in self.named_losses() if name not in terms for p in loss.parameters()]
        for parameter in idle:  # DDP waits for every parameter in every pass, also for projectors of other passes
            total = total + 0.0 * parameter.sum()
        return total, logs

    def terms(
        self, batch: Batch, pass_name: PassName, teacher: nn.Module | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weighted terms of one pass, averaged over the batch, with their graph; and what is to be logged."""
        wanted = {name: loss for name, loss in self.named_losses() if pass_name in loss.passes}
        needs_captures = any(loss.needs_captures for loss in wanted.values())
        with ExitStack() as stack:
            student_captures = stack.enter_context(capture(self.student)) if needs_captures else {}
            output = predict(self.student, batch).float()
        terms = {name: value.mean() for name, value in self._denoising(batch, output).items()}
        logs = {name: term.detach() for name, term in terms.items()}
        if wanted:
            assert teacher is not None, "losses need a teacher"
            for name, term in self._teach(batch, pass_name, teacher, wanted, output, student_captures).items():
                mean = term.value.mean()
                terms[name] = wanted[name].weight_at(batch.step) * mean
                logs[name] = mean.detach()
                logs |= {f"{name}/{key}": value for key, value in term.logs.items()}
        return terms, logs

    def _teach(
        self,
        batch: Batch,
        pass_name: PassName,
        teacher: nn.Module,
        losses: dict[str, Loss],
        output: Tensor,
        student_captures: Captures,
    ) -> dict[str, Term]:
        """Run the teacher; losses that can listen take its captures layer by layer, so that none is held.

        The first time the order of its layers is not known yet, and all captures are held.
        """
        order = self._teacher_layers.get(pass_name)
        capturing = {name: loss for name, loss in losses.items() if loss.needs_captures}
        listeners: dict[str, Listener] = {}
        for name, loss in capturing.items():
            listener = loss.listener(order, student_captures, batch) if order else None
            if listener is not None:
                listeners[name] = listener
        sharded = bool(capturing) and is_sharded(teacher)
        only_listeners = len(listeners) == len(losses)
        cut = self.cut_teacher and only_listeners and not any(loss.needs_output for loss in losses.values())

        def sink(layer: str, found: Capture) -> None:
            found = self._kept.of(layer, found) if sharded else found
            for listener in listeners.values():
                listener(layer, found)
            if len(listeners) < len(capturing):
                held[layer] = found
            if cut and not any(listener.waits for listener in listeners.values()):
                raise _Enough

        held: dict[str, Capture] = {}
        teacher_output = None
        with ExitStack() as stack, torch.no_grad(), suppress(_Enough):
            if capturing:
                stack.enter_context(capture(teacher, sink=sink))
            teacher_output = predict(teacher, batch).float()
        if capturing and not order:
            self._teacher_layers[pass_name] = list(held)
        found = {name: listener.term() for name, listener in listeners.items()}
        if not only_listeners:
            assert teacher_output is not None
            view = View(batch, self.schedule, output, teacher_output, student_captures, held)
            found |= {name: loss.term(view) for name, loss in losses.items() if name not in listeners}
        return {name: found[name] for name in losses}

    def _denoising(self, batch: Batch, output: Tensor) -> dict[str, Tensor]:
        noise, v = split(output, batch.x_0.shape[1])
        terms = {"noise": noise_error(self.schedule, noise, batch.noise, batch.t, self.gamma)}
        if v is not None:
            terms["variational"] = variational_bits(self.schedule, batch.x_0, batch.x_t, noise, v, batch.t)
        return terms

    def named_losses(self) -> list[tuple[str, Loss]]:
        """The losses by the name of their file; a second one of a kind gets a number."""
        names: list[tuple[str, Loss]] = []
        for loss in self.losses:
            base = type(loss).__module__.rpartition(".")[2]
            count = sum(name.split("#")[0] == base for name, _ in names)
            names.append((f"{base}#{count + 1}" if count else base, loss))  # type: ignore[arg-type]
        return names


class _Enough(Exception):
    """The teacher has run as far as it is needed."""
