"""Class-conditional rectified flow: the student predicts the velocity from data to noise, in MDT's masked pass, too."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from dit_shd.core.errors import UserError
from dit_shd.core.rng import Draws
from dit_shd.data.datasets import Dataset
from dit_shd.data.latent_origin import Kept
from dit_shd.diffusion import class_names, teacher_check
from dit_shd.diffusion.conditioning import MASKED, PASSES, Conditioning, check_conditional, check_fit
from dit_shd.diffusion.denoiser import NO_LABEL, Denoiser
from dit_shd.diffusion.flow import TimestepDensity, Weighting
from dit_shd.diffusion.guidance import Guidance
from dit_shd.diffusion.process import UNIFORM, Flow
from dit_shd.diffusion.sample_evaluation import SampleEvaluation
from dit_shd.models.prediction import NOISE, convention_of
from dit_shd.tasks import Batch, Output, Task, TeacherFinding, Terms

PLAIN = SampleEvaluation()


@dataclass(frozen=True, eq=False)
class FlowBatch(Batch):
    """Points on straight paths from latents to noise."""

    x_0: Tensor
    """Latents [b,c,y,x]."""
    noise: Tensor
    """The other ends, shaped like x_0."""
    x_t: Tensor
    """(1 - sigma) x_0 + sigma noise."""
    sigma: Tensor
    """Shares of noise [b]."""
    labels: Tensor
    """Class labels [b] after dropping; NO_LABEL where there is none."""
    keep: Tensor | None = None
    """Kept token indices [b,kept] of a masked pass."""


class FlowMatching(Task[FlowBatch]):
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

    batch_type: ClassVar = FlowBatch
    needs = frozenset({"latents", "labels"})
    all_passes = frozenset(PASSES)
    resumable = frozenset({"evaluation"})
    generates = True
    guides = True

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
        self.conditioning = Conditioning(label_dropout, mask_ratio)
        self.passes, self.convention = self.conditioning.passes, convention
        self.process, self.evaluation = Flow(timestep_density, weighting), evaluation
        self.tokens = 0
        """n of the student, for masked passes."""

    def student_options(self) -> Mapping[str, Any]:
        return {"prediction": self.convention, "learn_sigma": False}

    def use(self, dataset: Dataset, student: nn.Module) -> None:
        super().use(dataset, student)
        check_conditional("student", student)
        if MASKED in self.passes:
            self.tokens = Denoiser(student).tokens

    def check(self, role: str, model: nn.Module) -> None:
        self.check_model(role, model)
        check_fit(role, model, self.dataset)
        self.conditioning.check_tokens(role, model, self.tokens)

    def check_model(self, role: str, model: nn.Module) -> None:
        """It must denoise latents by class, its config name a velocity, and it know the masked pass if there is one."""
        check_conditional(role, model)
        _check_velocity(role, model)
        self.conditioning.check_model(role, model)

    def remarks(self, student: nn.Module) -> Sequence[str]:
        remarks = class_names.missing(self.dataset, Denoiser(student).classes)
        if student.config.get("learn_sigma"):  # type: ignore[union-attr]
            remarks.append("student.learn_sigma: half of its output is a variance, which flow matching does not train")
        return remarks

    def describe(self, student: nn.Module) -> None:
        class_names.record(student, class_names.learned(self.dataset, Denoiser(student).classes))

    def check_teacher(
        self, teacher: nn.Module, seed: int, device: torch.device, measure: bool
    ) -> Iterator[TeacherFinding]:
        dropout = self.conditioning.label_dropout
        for message, fault in teacher_check.findings(
            teacher, self.dataset, self.process, seed, device, dropout, measure
        ):
            yield TeacherFinding(message, fault)

    def draw(self, draws: Draws) -> Sequence[FlowBatch]:
        """The passes share x_0 and sigma, as the public recipe of MDT has it, and have their own noise and drops."""
        indices = draws.indices(len(self.dataset))
        sample = self.dataset.batch(indices, draws)
        x_0 = sample["latents"]
        sigma = self.process.times(draws.uniform("timestep"), x_0.shape)
        batches = []
        for name in self.passes:
            noise = draws.normal(f"noise/{name}", x_0.shape[1:])
            batch = FlowBatch(
                pass_name=name,
                step=draws.step,
                indices=torch.from_numpy(indices),
                x_0=x_0,
                noise=noise,
                x_t=self.process.add_noise(x_0, noise, sigma),
                sigma=sigma,
                labels=self.conditioning.labels(draws, name, sample["labels"]),
                keep=self.conditioning.keep(draws, name, self.tokens),
            )
            batches.append(batch)
        return batches

    def predict(self, model: nn.Module, batch: FlowBatch) -> Output:
        _check_velocity("model", model)
        output = Denoiser(model).predict(batch.x_t, batch.sigma, batch.labels, batch.keep)
        return Output(*self.process.prediction(output, batch.x_t, batch.sigma))

    def unconditional(self, batch: FlowBatch) -> FlowBatch:
        return replace(batch, labels=torch.full_like(batch.labels, NO_LABEL))

    def guided(self, conditional: Output, unconditional: Output, batch: FlowBatch, guidance: Guidance) -> Output:
        return Output(guidance.combined(conditional.prediction, unconditional.prediction, batch.sigma))

    def losses(self, output: Output, batch: FlowBatch) -> Terms:
        x_0, noise, x_t = batch.x_0, batch.noise, batch.x_t
        return self.process.losses(output.prediction, output.extra, x_0, noise, x_t, batch.sigma)

    def tokens_seen(self, model: nn.Module, batch: FlowBatch) -> int:
        return Denoiser(model).tokens if batch.keep is None else batch.keep.shape[1]

    def example(self, model: nn.Module, images: int, device: torch.device) -> Sequence[FlowBatch]:
        denoiser = Denoiser(model)
        draw = None if device.type == "meta" else torch.Generator(device).manual_seed(0)
        x = torch.randn(images, *denoiser.shape, device=device, generator=draw)
        sigma = self.process.times(torch.full((images,), 0.5, device=device), x.shape)
        labels = torch.zeros(images, dtype=torch.long, device=device)
        batches = []
        for name in self.passes:
            keep = self.conditioning.example_keep(name, denoiser.tokens, images, device)
            batches.append(FlowBatch(name, 0, labels, x, x, x, sigma, labels, keep))
        return batches

    def check_evaluation(self, student: nn.Module, kept: Kept | None) -> None:
        self.evaluation.check(self.convention)
        if kept is not None:
            self.evaluation.fit(student, kept)

    def evaluate(self, student: nn.Module, run: Path, step: int) -> dict[str, float] | None:
        return self.evaluation.run(student, run, step)

    def evaluated(self, run: Path, step: int, logged: bool) -> bool:
        return self.evaluation.finished(run, step, logged)


def _check_velocity(role: str, model: nn.Module) -> None:
    if convention_of(model) is None:
        raise UserError(
            f"{role}: predicts {NOISE} ({type(model).__name__}); wanted one whose config says that it predicts a "
            "velocity (rectified flow)"
        )
