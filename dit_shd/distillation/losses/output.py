"""Output distillation: the student predicts what the teacher predicts."""

import math
from collections.abc import Sequence

from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.diffusion.objectives import gaussian_kl, split
from dit_shd.diffusion.schedule import Schedule
from dit_shd.distillation.losses import Loss, Term, View, Weight
from dit_shd.tasks.diffusion import PassName


class Output(Loss):
    """Mean squared error of the predicted noise, student against teacher.

    Args:
        variance: add KL(p_teacher || p_student) of the learned variance in bits per dimension, the student's mean
            detached (the variational term with the teacher's distribution in place of the posterior).
    """

    def __init__(self, weight: Weight = 1.0, passes: Sequence[PassName] = ("plain", "masked"), variance: bool = False):
        super().__init__(weight, passes)
        self.variance = variance

    def term(self, view: View) -> Term:
        channels = view.batch.x_0.shape[1]
        noise, v = split(view.student, channels)
        teacher_noise, teacher_v = split(view.teacher, channels)
        error = (noise - teacher_noise).square().flatten(1).mean(1)
        if not self.variance:
            return Term(error)
        if v is None or teacher_v is None:
            raise UserError("losses.output.variance: both models must predict a variance (learn_sigma)")
        kl = variance_bits(view.schedule, view.batch.x_t, view.batch.t, noise, v, teacher_noise, teacher_v)
        return Term(error + kl, {"noise": error.detach().mean(), "variance": kl.detach().mean()})


def variance_bits(
    schedule: Schedule,
    x_t: Tensor,
    t: Tensor,
    noise: Tensor,
    v: Tensor,
    teacher_noise: Tensor,
    teacher_v: Tensor,
) -> Tensor:
    """KL(p_teacher(x_{t-1}|x_t) || p_student(x_{t-1}|x_t)) in bits per dimension [b]; only v gets a gradient."""

    def mean(predicted: Tensor) -> Tensor:
        return schedule.posterior_mean(schedule.predict_x_0(x_t, predicted, t), x_t, t)

    kl = gaussian_kl(
        mean(teacher_noise),
        schedule.log_variance(teacher_v, t),
        mean(noise.detach()),
        schedule.log_variance(v, t),
    )
    return kl.flatten(1).mean(1) / math.log(2.0)
