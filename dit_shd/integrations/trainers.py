"""SHD in any Trainer of transformers or TRL.

from dit_shd.integrations.trainers import add_shd
add_shd(trainer, SHD(weight=1.0), teacher)  # TRL's distillation trainers have a teacher: add_shd(trainer)

The trainer computes its loss as before, and the attention of both models is captured while it does; SHD is added to
what it returns. So backward, accumulation, precision, clipping and saving stay the trainer's own.

Rows of tokens that are not learned (padding, prompts: label -100) take no part. The sum over all others is divided by
their number in the whole batch of an optimizer step, over its micro batches and processes, as the trainer divides the
cross-entropy: the same gradient as Distiller's. Where a trainer makes its texts while it trains (on-policy), that
number is not known beforehand, and each micro batch counts the same.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_shd.attention.capture import Captures
from dit_shd.attention.recording.attach import capture
from dit_shd.core.errors import UserError
from dit_shd.distillation.losses.shd import SHD
from dit_shd.distillation.records import Layer
from dit_shd.tasks import Batch

if TYPE_CHECKING:
    from transformers import Trainer

IGNORED = -100
"""The label of tokens that are not learned, in transformers and TRL."""
Inputs = dict[str, Any]
"""What a trainer gives to compute_loss."""


@dataclass(frozen=True, eq=False)
class WeightedRows(Batch):
    """A batch of which only the weights of its query rows are known."""

    weight: Tensor
    """[b,n]"""

    def row_weight(self, tokens: int) -> Tensor:
        """The weights.

        Raises:
            UserError: A layer of other tokens.
        """
        if tokens != self.weight.shape[1]:
            raise UserError(
                f"add_shd: a layer has {tokens} query rows, the trainer's batch {self.weight.shape[1]} tokens; "
                "losses on attention want layers of all tokens"
            )
        return self.weight


def learned_rows(inputs: Inputs) -> Tensor:
    """Which tokens of a trainer's batch are learned, boolean [b,n]; the last one predicts nothing and is left out.

    Args:
        inputs: `labels` (-100: not learned), or TRL's prompt_ids, completion_ids and completion_mask.

    Raises:
        UserError: Neither is there.
    """
    if "completion_mask" in inputs and "prompt_ids" in inputs:
        completion = inputs["completion_mask"].bool()
        rows = torch.cat([torch.zeros_like(inputs["prompt_ids"], dtype=torch.bool), completion], dim=1)
    elif inputs.get("labels") is not None:
        rows = inputs["labels"] != IGNORED
        mask = inputs.get("attention_mask")
        rows = rows & mask.bool() if isinstance(mask, Tensor) and mask.shape == rows.shape else rows
    else:
        raise UserError(f"add_shd: wanted labels in the trainer's batch, found {', '.join(inputs)}")
    rows = rows.clone()
    rows[:, -1] = False
    return rows


def backbone(model: nn.Module) -> nn.Module:
    """A language model without its head, which TRL's DistillationTrainer runs by itself; also of one with adapters."""
    whole: Any = getattr(model, "get_base_model", lambda: model)()
    return getattr(whole, "base_model", whole)


def add_shd(trainer: "Trainer", loss: SHD | None = None, teacher: nn.Module | None = None) -> "SHDTerm":
    """Add SHD to a trainer that is made, before train() is called.

    Args:
        trainer: Of transformers or TRL, with a causal language model.
        loss: SHD as it is to be computed; the paper's beta for language, 1.0, where it is not given.
        teacher: The teacher; none where the trainer has one (`teacher_model`).

    Returns:
        The term, whose mean is in the trainer's log as `shd`; its `remove` leaves the trainer as it was.

    Raises:
        UserError: No teacher, or a model that is replicated over GPUs in one process.
    """
    if trainer.args.n_gpu > 1:
        raise UserError("add_shd: DataParallel is not supported; start one process for each GPU (torchrun, accelerate)")
    own = getattr(trainer, "teacher_model", None)
    found = own if teacher is None else teacher
    if not isinstance(found, nn.Module):
        raise UserError(
            f"add_shd: {type(trainer).__name__} has no teacher_model; wanted add_shd(trainer, loss, teacher)"
        )
    if found is not own:
        found.to(trainer.args.device).eval().requires_grad_(False)
    return SHDTerm(trainer, SHD(weight=1.0) if loss is None else loss, found)


class SHDTerm:
    """The term that add_shd adds.

    Args:
        trainer: Whose methods compute_loss, get_batch_samples and log are wrapped.
        loss: SHD.
        teacher: On the trainer's device, frozen.
    """

    def __init__(self, trainer: "Trainer", loss: SHD, teacher: nn.Module):
        self.trainer, self.loss, self.teacher = trainer, loss, teacher
        self._expected: deque[int] = deque()
        """Learned rows of the micro batches to come, as far as they are known beforehand."""
        self._total = 0.0
        """Learned rows of the optimizer step's batch, over all processes."""
        self._sum, self._count = 0.0, 0
        self._compute_loss, self._log = trainer.compute_loss, trainer.log
        self._get_batch_samples = trainer.get_batch_samples
        for name in ("compute_loss", "get_batch_samples", "log"):
            setattr(trainer, name, getattr(self, name))

    def remove(self) -> None:
        """Leave the trainer as it was."""
        for name in ("compute_loss", "get_batch_samples", "log"):
            vars(self.trainer).pop(name, None)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (as the trainer's)
        """The trainer's, which draws the micro batches of an optimizer step; their rows are counted."""
        found = self._get_batch_samples(*args, **kwargs)
        known = [x for x in found[0] if isinstance(x, Mapping) and x.get("labels") is not None]  # TRL's may be texts
        counts = [int(learned_rows(dict(x)).sum()) for x in known]
        self._expected = deque(counts)
        total = torch.tensor(float(sum(counts)), device=self.trainer.args.device)
        every: Any = self.trainer.accelerator.gather(total[None])
        self._total = float(every.sum())
        return found

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Inputs,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ANN401 (as the trainer's)
    ) -> Any:  # noqa: ANN401 (as the trainer's)
        """The trainer's loss and, in training, SHD."""
        arguments = {"return_outputs": return_outputs, "num_items_in_batch": num_items_in_batch}
        if not model.training:
            return self._compute_loss(model, inputs, **arguments)
        rows, asked = learned_rows(inputs), _tokens(inputs)
        unwrap = self.trainer.accelerator.unwrap_model
        student, teacher = backbone(unwrap(model)), backbone(unwrap(self.teacher))
        with capture(student) as ours, capture(teacher) as theirs:
            found = self._compute_loss(model, inputs, **arguments)
            if not len(theirs):  # the trainer does not run it
                with torch.no_grad():
                    self.teacher(**asked, use_cache=False)
        term = self._term(ours, theirs, rows) * self._scale(rows, num_items_in_batch)
        return (found[0] + term, found[1]) if isinstance(found, tuple) else found + term

    def _term(self, student: Captures, teacher: Captures, rows: Tensor) -> Tensor:
        """The weighted sum over the rows that are learned."""
        b, n = rows.shape
        step = int(self.trainer.state.global_step)
        batch = WeightedRows("plain", step, torch.arange(b), rows.float() * (b * n))
        layers = {name: Layer(name, attention=layer) for name, layer in student.items()}
        pairs = self.loss.begin(list(teacher), layers, batch)
        for name, layer in teacher.items():
            pairs(Layer(name, attention=layer))
        value = pairs.term().value.mean()
        self._sum += float(value.detach()) / max(1, int(rows.sum()))
        self._count += 1
        return self.loss.weight_at(step) * value

    def _scale(self, rows: Tensor, num_items: Any) -> float:  # noqa: ANN401 (a number or a tensor)
        """What makes of a micro batch's sum its share of the step's mean, after what the trainer does to the loss."""
        trainer: Any = self.trainer
        steps = max(1, int(getattr(trainer, "current_gradient_accumulation_steps", 1)))
        whole = getattr(trainer, "loss_is_scaled_for_ga", None)
        if whole is None:
            scaled = trainer.model_accepts_loss_kwargs and num_items is not None
            whole = scaled or trainer.compute_loss_func is not None
        factor = 1.0 if whole else float(steps)  # the trainer divides by the micro batches what is a mean of each
        count = int(rows.sum())
        expected = self._expected.popleft() if self._expected else None
        if expected == count and self._total:
            return factor * trainer.accelerator.num_processes / self._total
        return factor / (steps * max(1, count))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The trainer's, with the mean of SHD since the last time in this process."""
        if self._count and "loss" in logs:
            logs["shd"] = self._sum / self._count
            self._sum, self._count = 0.0, 0
        self._log(logs, *args, **kwargs)


def _tokens(inputs: Inputs) -> dict[str, Tensor]:
    """What a teacher that the trainer does not run is given."""
    if "prompt_ids" in inputs and "completion_ids" in inputs:
        return {
            "input_ids": torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            "attention_mask": torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
        }
    return {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids") if name in inputs}
