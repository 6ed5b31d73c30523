"""Class-conditional diffusion: the student predicts the noise of DDPM, in MDT's masked pass, too.

flow_matching.py is the same along another process.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from dit_shd.core.errors import UserError
from dit_shd.core.rng import Draws
from dit_shd.data.datasets import Dataset
from dit_shd.data.latent_origin import Kept
from dit_shd.diffusion import class_names
from dit_shd.diffusion.conditioning import MASKED, PASSES, Conditioning, check_conditional, check_fit, check_labels
from dit_shd.diffusion.denoiser import NO_LABEL, Denoiser
from dit_shd.diffusion.guidance import Guidance
from dit_shd.diffusion.label_teacher_check import LabelTeacherCheck
from dit_shd.diffusion.objectives import checked_gamma
from dit_shd.diffusion.process import Ddpm, Process
from dit_shd.diffusion.sample_evaluation import SampleEvaluation
from dit_shd.diffusion.schedule import Schedule
from dit_shd.diffusion.teacher_check import latents_fault
from dit_shd.models.prediction import NOISE, prediction_of
from dit_shd.tasks import Batch, Output, Task, TeacherFinding, Terms

PLAIN = SampleEvaluation()


@dataclass(frozen=True, eq=False)
class NoisyBatch(Batch):
    """Noised latents."""

    x_0: Tensor
    """Latents [b,c,y,x]."""
    noise: Tensor
    """Shaped like x_0."""
    x_t: Tensor
    """x_0 noised to time t."""
    t: Tensor
    """Timesteps [b] of DDPM, or shares of noise [b] of rectified flow."""
    labels: Tensor
    """Class labels [b] after dropping; NO_LABEL where there is none."""
    keep: Tensor | None = None
    """Kept token indices [b,kept] of a masked pass."""


class Diffusion(Task[NoisyBatch]):
    """Noise prediction on latents with class labels (Ho et al., arXiv 2006.11239; MDT, arXiv 2303.14389).

    Args:
        label_dropout: Share of labels dropped, for guidance.
        mask_ratio: Masked pass: a share drawn once a step from here to +0.2 is hidden; empty for no masked pass.
        min_snr_gamma: Weight min(SNR, gamma)/SNR of the noise error; empty for none.
        timesteps: Steps of the linear noise schedule.
        evaluation: Samples and figures while training: count, steps, guidance, labels, reference, features, sample,
            evaluate, keep.
    """

    batch_type: ClassVar = NoisyBatch
    needs = frozenset({"latents", "labels"})
    all_passes = frozenset(PASSES)
    resumable = frozenset({"evaluation"})
    generates = True
    guides = True

    def __init__(
        self,
        label_dropout: float = 0.1,
        mask_ratio: float | None = 0.3,
        min_snr_gamma: float | None = 5.0,
        timesteps: int = 1000,
        evaluation: SampleEvaluation = PLAIN,
    ):
        self.conditioning = Conditioning(label_dropout, mask_ratio)
        gamma = checked_gamma(min_snr_gamma)
        self.process: Process = Ddpm(Schedule.linear(timesteps, "task.timesteps"), gamma=gamma)
        self.prediction, self.timesteps = NOISE, timesteps
        self.passes, self.evaluation = self.conditioning.passes, evaluation
        self.tokens = 0
        """n of the student, for masked passes."""

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
        """It must denoise latents by class, predict noise, and know the masked pass if there is one."""
        check_conditional(role, model)
        if prediction_of(model) != NOISE:
            raise UserError(
                f"{role}: predicts {prediction_of(model)} and not noise; wanted task.name=flow_matching, or a model "
                "that predicts noise"
            )
        self.conditioning.check_model(role, model)

    def remarks(self, student: nn.Module) -> Sequence[str]:
        return class_names.missing(self.dataset, Denoiser(student).classes)

    def describe(self, student: nn.Module) -> None:
        class_names.record(student, class_names.learned(self.dataset, Denoiser(student).classes))

    def check_teacher(
        self, teacher: nn.Module, seed: int, device: torch.device, measure: bool
    ) -> Iterator[TeacherFinding]:
        yield TeacherFinding("", latents_fault(teacher, self.dataset))
        check = LabelTeacherCheck(self.process, self.dataset, seed, device)
        for message, fault in check.questions(teacher, self.conditioning.label_dropout, measure):
            yield TeacherFinding(message, fault)

    def draw(self, draws: Draws) -> Sequence[NoisyBatch]:
        """The batch of each pass. As in the public recipe they share x_0 and t, not the noise and the label drops."""
        indices = self.dataset.indices(draws)
        sample = self.dataset.batch(indices, draws)
        x_0, labels = sample["latents"], sample["labels"]
        check_labels(self.dataset, labels)
        t = self.process.times(draws.uniform("timestep"), x_0.shape)
        batches = []
        for name in self.passes:
            noise = draws.normal(f"noise/{name}", x_0.shape[1:])
            batch = NoisyBatch(
                pass_name=name,
                step=draws.step,
                indices=torch.from_numpy(indices),
                x_0=x_0,
                noise=noise,
                x_t=self.process.add_noise(x_0, noise, t),
                t=t,
                labels=self.conditioning.labels(draws, name, labels),
                keep=self.conditioning.keep(draws, name, self.tokens),
            )
            batches.append(batch)
        return batches

    def predict(self, model: nn.Module, batch: NoisyBatch) -> Output:
        output = Denoiser(model).predict(batch.x_t, batch.t, batch.labels, batch.keep)
        return Output(*self.process.prediction(output, batch.x_t, batch.t))

    def unconditional(self, batch: NoisyBatch) -> NoisyBatch:
        return replace(batch, labels=torch.full_like(batch.labels, NO_LABEL))

    def guided(self, conditional: Output, unconditional: Output, batch: NoisyBatch, guidance: Guidance) -> Output:
        """The variance is the conditional one, and the mean that of the guided noise."""
        share, v = self.process.share(batch.t), conditional.extra.get("variance")
        prediction = guidance.combined(conditional.prediction, unconditional.prediction, share)
        return Output(prediction, self.process.extra(prediction, v, batch.x_t, batch.t))

    def losses(self, output: Output, batch: NoisyBatch) -> Terms:
        x_0, noise, x_t = batch.x_0, batch.noise, batch.x_t
        return self.process.losses(output.prediction, output.extra, x_0, noise, x_t, batch.t)

    def tokens_seen(self, model: nn.Module, batch: NoisyBatch) -> int:
        return Denoiser(model).tokens if batch.keep is None else batch.keep.shape[1]

    def example(self, model: nn.Module, images: int, device: torch.device) -> Sequence[NoisyBatch]:
        denoiser = Denoiser(model)
        draw = None if device.type == "meta" else torch.Generator(device).manual_seed(0)
        x = torch.randn(images, *denoiser.shape, device=device, generator=draw)
        t = self.process.times(torch.full((images,), 0.5, device=device), x.shape)
        labels = torch.zeros(images, dtype=torch.long, device=device)
        batches = []
        for name in self.passes:
            keep = self.conditioning.example_keep(name, denoiser.tokens, images, device)
            batches.append(NoisyBatch(name, 0, labels, x, x, x, t, labels, keep))
        return batches

    def check_evaluation(self, student: nn.Module, kept: Kept | None) -> None:
        self.evaluation.check(self.prediction, self.timesteps)
        if kept is not None:
            self.evaluation.fit(student, kept)

    def evaluate(self, student: nn.Module, run: Path, step: int) -> dict[str, float] | None:
        return self.evaluation.run(student, run, step)

    def evaluated(self, run: Path, step: int, logged: bool) -> bool:
        return self.evaluation.finished(run, step, logged)
