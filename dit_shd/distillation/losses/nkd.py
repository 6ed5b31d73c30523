"""Normalised distillation of logits: the target class and the other classes, compared separately."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.distillation.logits import checked_temperature, shared_logits
from dit_shd.distillation.losses import Forward, Loss, Needs, Term, Weight
from dit_shd.tasks import Batch


class NKD(Loss):
    """Normalised KD (Yang et al., arXiv 2303.13005) of logits t, s [b,k] and the class y [b].

    -p_t[y] log p_s[y] - gamma T^2 sum over k != y of softmax(t / T without y) log softmax(s / T without y), p the
    softmax at T = 1. It is a cross-entropy: where student and teacher agree it is minimal, but not 0.

    y is the batch's hard label: of mixed images the class with the larger share, as in the public code.

    Args:
        weight: Factor of the loss; {step: factor} for a schedule, in YAML also {20%: factor}.
        passes: Of the task, in which it applies.
        gamma: Of the other classes; 1 in the published runs of vision transformers.
        temperature: T of the other classes; 1 in those runs.
    """

    needs = frozenset({Needs.LOGITS, Needs.CLASSES})
    paper = "arXiv 2303.13005"

    def __init__(
        self,
        weight: Weight = 1.0,
        passes: Sequence[str] = ("plain",),
        gamma: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(weight, passes)
        if not gamma >= 0:
            raise UserError(f"losses.nkd.gamma: wanted 0 or more, found {gamma}")
        self.gamma, self.temperature = gamma, checked_temperature("nkd", temperature)

    def term(self, student: Forward, teacher: Forward, batch: Batch) -> Term:
        """Both parts of each sample [b]."""
        s, t = shared_logits("nkd", student, teacher)
        labels = _labels(batch, s)
        target = -_at(F.softmax(t, 1), labels) * _at(F.log_softmax(s, 1), labels)
        is_label = F.one_hot(labels, s.shape[1]).bool()
        others_s, others_t = (x.div(self.temperature).masked_fill(is_label, -torch.inf) for x in (s, t))
        log_s = F.log_softmax(others_s, 1).masked_fill(others_t == -torch.inf, 0)  # the label, and classes left out
        others = -(self.temperature**2) * (F.softmax(others_t, 1) * log_s).sum(1)
        logs = {"target": target.detach().mean(), "others": others.detach().mean()}
        return Term(target + self.gamma * others, logs)


def _at(values: Tensor, labels: Tensor) -> Tensor:
    """The values [b,k] at the labels [b]."""
    return values.gather(1, labels[:, None])[:, 0]


def _labels(batch: Batch, logits: Tensor) -> Tensor:
    """The classes [b] of a batch.

    Raises:
        UserError: It has none, or the logits are not of one class for each sample.
    """
    labels = getattr(batch, "labels", None)
    if not isinstance(labels, Tensor) or logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise UserError(
            f"losses.nkd: wanted logits [b,k] and a class for each sample, found {list(logits.shape)} and "
            f"{'no labels' if labels is None else list(labels.shape)}; it is for the task classification"
        )
    return labels
