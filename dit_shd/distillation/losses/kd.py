"""Distillation of logits: KL divergence of the student's classes or tokens from the teacher's."""

from collections.abc import Sequence

from dit_shd.distillation.features import weighted_mean
from dit_shd.distillation.logits import checked_temperature, divergence, shared_logits
from dit_shd.distillation.losses import Forward, Loss, Needs, Term, Weight
from dit_shd.tasks import Batch


class KD(Loss):
    """T^2 KL(softmax(t / T) || softmax(s / T)) of logits t, s [b,k] or [b,n,k] (Hinton et al., arXiv 1503.02531).

    For tokens it is the mean over n, with the task's weights of predictions. T^2 makes the size of the gradient about
    the same at any T.

    Args:
        weight: Factor of the loss; {step: factor} for a schedule, in YAML also {20%: factor}.
        passes: Of the task, in which it applies.
        temperature: T.
    """

    needs = frozenset({Needs.LOGITS})
    paper = "arXiv 1503.02531"

    def __init__(self, weight: Weight = 1.0, passes: Sequence[str] = ("plain",), temperature: float = 1.0) -> None:
        super().__init__(weight, passes)
        self.temperature = checked_temperature("kd", temperature)

    def term(self, student: Forward, teacher: Forward, batch: Batch) -> Term:
        """The divergence of each sample [b]."""
        value = self.temperature**2 * divergence(*shared_logits("kd", student, teacher), self.temperature)
        return Term(value if value.ndim == 1 else weighted_mean(value, batch.prediction_weight()))
