"""Class-conditional rectified flow: the student predicts the velocity from data to noise, in MDT's masked pass, too."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from dit_shd.core.errors import UserError
from dit_shd.diffusion.conditioning import check_conditional
from dit_shd.diffusion.flow import TimestepDensity, Weighting
from dit_shd.diffusion.process import UNIFORM, Flow
from dit_shd.diffusion.sample_evaluation import SampleEvaluation
from dit_shd.models.prediction import NOISE, convention_of
from dit_shd.tasks import Output
from dit_shd.tasks.diffusion import PLAIN, Diffusion, NoisyBatch


class FlowMatching(Diffusion):
    """Velocity prediction on latents with class labels (rectified flow: SiT, arXiv 2401.08740; SD3, 2403.03206).

    Teacher and student may have different conventions: each is called in the one that its config names.

    Args:
        label_dropout: Share of labels dropped, for guidance.
        mask_ratio: Masked pass: a share drawn once a step from here to +0.2 is hidden; empty for no masked pass.
        convention: Of a student whose own `prediction` is not given, and written into its config: velocity_sit (time 0
            is noise), velocity_repa (time 1 is noise) or velocity_sd3 (the same, times 1000).
        timestep_density: How often each share of noise is trained: name (uniform, logit_normal, mode, cosmap), mean,
            std, scale, shift, base_side.
        weighting: Of the error by the share of noise: none, cosmap or sigma_sqrt.
        evaluation: Samples and figures while training: count, steps, guidance, labels, reference, features, sample,
            evaluate, keep.
    """

    def __init__(
        self,
        label_dropout: float = 0.1,
        mask_ratio: float | None = None,
        convention: Literal["velocity_sit", "velocity_repa", "velocity_sd3"] = "velocity_sit",
        timestep_density: TimestepDensity = UNIFORM,
        weighting: Weighting = "none",
        evaluation: SampleEvaluation = PLAIN,
    ):
        timestep_density.check("task.timestep_density.")
        super().__init__(label_dropout, mask_ratio, evaluation=evaluation)
        self.process, self.prediction = Flow(timestep_density, weighting), convention

    def student_options(self) -> Mapping[str, Any]:
        return {"prediction": self.prediction, "learn_sigma": False}

    def check_model(self, role: str, model: nn.Module) -> None:
        """It must denoise latents by class, its config name a velocity, and it know the masked pass if there is one."""
        check_conditional(role, model)
        _check_velocity(role, model)
        self.conditioning.check_model(role, model)

    def remarks(self, student: nn.Module) -> Sequence[str]:
        remarks = [*super().remarks(student)]
        if student.config.get("learn_sigma"):  # type: ignore[union-attr]
            remarks.append("student.learn_sigma: half of its output is a variance, which flow matching does not train")
        return remarks

    def predict(self, model: nn.Module, batch: NoisyBatch) -> Output:
        _check_velocity("model", model)
        return super().predict(model, batch)


def _check_velocity(role: str, model: nn.Module) -> None:
    if convention_of(model) is None:
        raise UserError(
            f"{role}: predicts {NOISE} ({type(model).__name__}); wanted one whose config says that it predicts a "
            "velocity (rectified flow)"
        )
