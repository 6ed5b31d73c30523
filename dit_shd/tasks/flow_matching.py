"""Class-conditional rectified flow: the student predicts the velocity from data to noise, in MDT's masked pass, too."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from dit_shd.core.errors import UserError
from dit_shd.data.latent_origin import Kept
from dit_shd.diffusion.conditioning import Conditioning
from dit_shd.diffusion.flow import (
    TimestepDensity,
    Weighting,
    loss_weight,
    no_velocity,
    point_on_path,
    predict_velocity,
    velocity_error,
)
from dit_shd.diffusion.guidance import Guidance
from dit_shd.diffusion.process import Process, process_of
from dit_shd.diffusion.sample_evaluation import SampleEvaluation
from dit_shd.models.prediction import convention_of
from dit_shd.tasks import Output, Terms
from dit_shd.tasks._class_conditional import ClassConditional, NoisyBatch

UNIFORM, PLAIN = TimestepDensity(), SampleEvaluation()


class FlowMatching(ClassConditional):
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
        super().__init__(Conditioning(label_dropout, mask_ratio), evaluation)
        timestep_density.check("task.timestep_density.")
        self.convention, self.density = convention, timestep_density
        self.weighting: Weighting = weighting

    def student_options(self) -> Mapping[str, Any]:
        return {"prediction": self.convention, "learn_sigma": False}

    def check_model(self, role: str, model: nn.Module) -> None:
        """Also, its config must name a velocity."""
        super().check_model(role, model)
        if convention_of(model) is None:
            raise UserError(f"{role}: {no_velocity(model)}")

    def remarks(self, student: nn.Module) -> Sequence[str]:
        variance: bool = student.config.get("learn_sigma")  # type: ignore[union-attr]
        line = "student.learn_sigma: half of its output is a variance, which flow matching does not train"
        return [*super().remarks(student), *([line] if variance else [])]

    def times(self, uniform: Tensor, side: int) -> Tensor:
        return self.density.sigmas(uniform, side).float()

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return point_on_path(x_0, noise, t)

    def process(self, model: nn.Module) -> Process:
        return process_of(model)

    def predict(self, model: nn.Module, batch: NoisyBatch) -> Output:
        return Output(predict_velocity(model, batch.x_t, batch.t, batch.labels, batch.keep))

    def guided(self, conditional: Output, unconditional: Output, batch: NoisyBatch, guidance: Guidance) -> Output:
        return Output(guidance.combined(conditional.prediction, unconditional.prediction, batch.t))

    def losses(self, output: Output, batch: NoisyBatch) -> Terms:
        weight = loss_weight(self.weighting, batch.t)
        return {"velocity": velocity_error(output.prediction, batch.noise - batch.x_0, weight)}

    def check_evaluation(self, student: nn.Module, kept: Kept | None) -> None:
        self.evaluation.check(self.convention)
        super().check_evaluation(student, kept)
