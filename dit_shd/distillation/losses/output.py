"""Output distillation: the error of the student's prediction from the teacher's."""

import math
from collections.abc import Sequence
from typing import Any, Self

import torch

from dit_shd.core.errors import UserError
from dit_shd.diffusion.guidance import Guidance
from dit_shd.diffusion.objectives import gaussian_kl
from dit_shd.distillation.features import weighted_mean
from dit_shd.distillation.losses import Loss, Term, Weight
from dit_shd.tasks import Batch
from dit_shd.tasks import Output as Prediction


class Output(Loss):
    """Mean squared error of the prediction (noise, velocity), student against teacher.

    Of logits [b,n,k] of tokens it has the task's weights of predictions, as its own loss has: padding does not count.

    Args:
        weight: Factor of the loss; {step: factor} for a schedule, in YAML also {20%: factor}.
        passes: Of the task, in which it applies; None for all.
        variance: Whether to add KL(p_teacher(x_{t-1}|x_t) || p_student(x_{t-1}|x_t)) of a learned variance in bits per
            dimension, with the student's mean detached (the variational term with the teacher's distribution in place
            of the posterior; arXiv 2102.09672).
        guidance: Scale of classifier-free guidance of the teacher's prediction, or {scale, schedule, power, channels};
            empty for none. The student learns what the guided teacher predicts in one call (arXiv 2210.03142, first
            stage, at a fixed scale), and is sampled with guidance 1. The teacher runs twice.
    """

    paper = "arXiv 2305.15798, 2412.01199"

    def __init__(
        self,
        weight: Weight = 1.0,
        passes: Sequence[str] | None = None,
        variance: bool = False,
        guidance: Guidance | None = None,
    ):
        super().__init__(weight, passes)
        self.variance, self.guidance = variance, guidance

    @classmethod
    def from_options(cls, teacher: str | list[str] | None = None, **options: Any) -> Self:
        loss = super().from_options(teacher, **options)
        if loss.variance and isinstance(teacher, list):
            raise UserError(
                f"losses.output: variance: several teachers have no mean of it; wanted the name of one, found {teacher}"
            )
        return loss

    def term(self, student: Prediction, teacher: Prediction, batch: Batch) -> Term:
        s, t = student.prediction, teacher.prediction
        if s.shape != t.shape:
            raise UserError(
                f"losses.output: wanted predictions of one shape, found {list(s.shape)} of the student and "
                f"{list(t.shape)} of the teacher"
            )
        weight = batch.prediction_weight()
        if weight is None:
            error = (s - t).square().flatten(1).mean(1)
        else:
            difference = torch.where(weight[..., None] > 0, s - t, 0.0)
            error = weighted_mean(difference.square().mean(2), weight)
        if not self.variance:
            return Term(error)
        if not {"mean", "log_variance"} <= student.extra.keys() & teacher.extra.keys():
            raise UserError("losses.output.variance: both models must predict a variance (learn_sigma)")
        extra, target = student.extra, teacher.extra
        nats = gaussian_kl(target["mean"], target["log_variance"], extra["mean"].detach(), extra["log_variance"])
        kl = nats.flatten(1).mean(1) / math.log(2.0)
        return Term(error + kl, {"noise": error.detach().mean(), "variance": kl.detach().mean()})
