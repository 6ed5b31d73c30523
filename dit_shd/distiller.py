"""The student and its losses as one module: what accelerate prepares, and what a training step calls."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from dit_shd.attention import Capture, Captures, capture
from dit_shd.batch import NO_LABEL, Batch, PassName
from dit_shd.diffusion import Schedule, noise_error, split, variational_bits
from dit_shd.losses import Listener, Loss, Term, View


class Distiller(nn.Module):
    """The student, and the losses with whatever projectors they hold.

    The teacher is a guest: it comes in with each call and is never a part of this module, so it is never
    synchronised, saved or averaged.

    Args:
        gamma: min-SNR weight of the noise error; None for no weight.
    """

    def __init__(self, student: nn.Module, losses: Sequence[Loss], schedule: Schedule, gamma: float | None = 5.0):
        super().__init__()
        self.student = student
        self.losses = nn.ModuleList(losses)
        self.schedule, self.gamma = schedule, gamma
        self._teacher_layers: dict[PassName, list[str]] = {}
        """The teacher's layers in the order in which they ran; known after the first call of a pass."""

    def forward(
        self, batch: Batch, pass_name: PassName = "plain", teacher: nn.Module | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one pass, averaged over the batch, and its terms (detached) by name."""
        wanted = {name: loss for name, loss in self.named_losses() if pass_name in loss.passes}
        needs_captures = any(loss.needs_captures for loss in wanted.values())
        with ExitStack() as stack:
            student_captures = stack.enter_context(capture(self.student)) if needs_captures else {}
            output = predict(self.student, batch).float()
        terms = self._denoising(batch, output)
        total = torch.stack([term.mean() for term in terms.values()]).sum()
        logs = {name: term.detach().mean() for name, term in terms.items()}
        if wanted:
            assert teacher is not None, "losses need a teacher"
            for name, term in self._teach(batch, pass_name, teacher, wanted, output, student_captures).items():
                total = total + wanted[name].weight * term.value.mean()
                logs[name] = term.value.detach().mean()
                logs |= {f"{name}/{key}": value for key, value in term.logs.items()}
        idle = [p for name, loss in self.named_losses() if name not in wanted for p in loss.parameters()]
        for parameter in idle:  # DDP waits for every parameter in every pass, also for projectors of other passes
            total = total + 0.0 * parameter.sum()
        return total, logs

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

        def sink(layer: str, found: Capture) -> None:
            for listener in listeners.values():
                listener(layer, found)
            if len(listeners) < len(capturing):
                held[layer] = found

        held: dict[str, Capture] = {}
        with ExitStack() as stack, torch.no_grad():
            if capturing:
                stack.enter_context(capture(teacher, sink=sink))
            teacher_output = predict(teacher, batch).float()
        if capturing and not order:
            self._teacher_layers[pass_name] = list(held)
        view = View(batch, self.schedule, output, teacher_output, student_captures, held)
        return {name: listeners[name].term() if name in listeners else loss.term(view) for name, loss in losses.items()}

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


def predict(model: nn.Module, batch: Batch) -> Tensor:
    """A model's output for one batch; models of diffusers and ours are called alike."""
    masked = {} if batch.keep is None else {"keep": batch.keep}
    labels = torch.where(batch.labels == NO_LABEL, classes_of(model), batch.labels)
    x_t = batch.x_t.to(next(model.parameters()).dtype)  # a teacher may be held in bfloat16
    return model(x_t, batch.t, class_labels=labels, return_dict=False, **masked)[0]


def classes_of(model: nn.Module) -> int:
    """The number of classes of a model; that number is also its label for "none"."""
    config: Any = model.config
    return config.num_classes if "num_classes" in config else config.num_embeds_ada_norm
