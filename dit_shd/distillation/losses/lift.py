"""LIFT and PLACE: the error of the prediction in two parts, a linear fit first and the rest later."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.diffusion.guidance import Guidance
from dit_shd.distillation.losses import Loss, Term, Weight
from dit_shd.distillation.schedule import at_step, schedule
from dit_shd.tasks import Batch
from dit_shd.tasks import Output as Prediction


class Lift(Loss):
    """Output distillation split in a coarse and a fine part, staged by step (LIFT and PLACE, arXiv 2605.19729).

    The paper is known to us by its abstract and its page; this is our reading. In each group of positions of a sample
    a y_t + b is the least-squares fit to the student's y_s. coarse = mean (a y_t + b - y_t)^2 vanishes at a = 1, b = 0;
    fine = mean (y_s - a y_t - b)^2 is what no line explains. Their sum is the mean of (y_s - y_t)^2 exactly, since the
    residual of a fit is orthogonal to it; so with both weights 1 this is the loss `output`. With several groups (PLACE)
    positions are sorted by |y_s - y_t| and divided into groups of equal size, with a fit each.

    Args:
        weight: Factor of the loss; {step: factor} for a schedule, in YAML also {20%: factor}.
        passes: Of the task, in which it applies; None for all.
        coarse: Factor of the coarse part, constant or by step.
        fine: Likewise of the fine part, which by default comes in over 10,000 steps; of a shorter run say
            {0: 0, 50%: 1}.
        groups: Of positions; 1 is LIFT alone.
        guidance: Scale of classifier-free guidance of the teacher's prediction, or {scale, schedule, power, channels};
            empty for none (see the loss output).
    """

    paper = "arXiv 2605.19729"

    def __init__(
        self,
        weight: Weight = 1.0,
        passes: Sequence[str] | None = None,
        coarse: Weight = 1.0,
        fine: Weight = {0: 0.0, 10_000: 1.0},  # noqa: B006
        groups: int = 1,
        guidance: Guidance | None = None,
    ) -> None:
        super().__init__(weight, passes)
        if groups < 1:
            raise UserError(f"losses.lift.groups: wanted 1 or more, found {groups}")
        self.parts = {"coarse": schedule(coarse, "losses.lift.coarse"), "fine": schedule(fine, "losses.lift.fine")}
        self.groups, self.guidance = groups, guidance

    def term(self, student: Prediction, teacher: Prediction, batch: Batch) -> Term:
        """Both parts of each sample [b]."""
        if batch.prediction_weight() is not None:
            raise UserError(
                "losses.lift: fits a line through all of a prediction, and of tokens (padding, prompts) not all count; "
                "wanted the loss output or kd"
            )
        s, t = student.prediction.flatten(1), teacher.prediction.flatten(1)
        if s.shape != t.shape or self.groups > s.shape[1]:
            raise UserError(
                f"losses.lift: wanted predictions of one shape and at least {self.groups} positions, found "
                f"{list(student.prediction.shape)} and {list(teacher.prediction.shape)} of the teacher"
            )
        error = s - t
        order = error.detach().abs().argsort(1)
        parts = [_split(error.gather(1, part), t.gather(1, part)) for part in order.tensor_split(self.groups, 1)]
        coarse, fine = (torch.stack(values).sum(0) for values in zip(*parts))
        sums = {"coarse": coarse, "fine": fine}
        means = {name: total / s.shape[1] for name, total in sums.items()}
        factors = {name: at_step(at, batch.step) for name, at in self.parts.items()}
        value = torch.stack([factors[name] * mean for name, mean in means.items()]).sum(0)
        return Term(value, {name: mean.detach().mean() for name, mean in means.items()})


def _split(error: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Squared lengths [b] of the error [b,k] along 1 and the teacher, and across both."""
    centred = teacher - teacher.mean(1, keepdim=True)
    length = centred.square().sum(1, keepdim=True)
    varies = length > torch.finfo(error.dtype).eps * teacher.square().sum(1, keepdim=True)  # beyond its rounding
    slope = torch.where(varies, (error * centred).sum(1, keepdim=True) / length.where(varies, length + 1), 0.0)
    fit = error.mean(1, keepdim=True) + slope * centred
    return fit.square().sum(1), (error - fit).square().sum(1)
