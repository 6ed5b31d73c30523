"""What both class-conditional tasks on latents do alike: passes, labels, checks and evaluation by samples."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from dit_shd.core.rng import Draws
from dit_shd.data.datasets import Dataset
from dit_shd.data.latent_origin import Kept
from dit_shd.diffusion import class_names, teacher_check
from dit_shd.diffusion.conditioning import MASKED, PASSES, Conditioning, check_conditional, check_fit
from dit_shd.diffusion.denoiser import NO_LABEL, Denoiser
from dit_shd.diffusion.process import Process
from dit_shd.diffusion.sample_evaluation import SampleEvaluation
from dit_shd.tasks import Batch, Task, TeacherFinding


@dataclass(frozen=True, eq=False)
class NoisyBatch(Batch):
    """Noised latents."""

    x_0: Tensor
    """Latents [b,c,y,x]."""
    noise: Tensor
    """The noise in x_t, shaped like x_0."""
    x_t: Tensor
    """x_0 noised to time t."""
    t: Tensor
    """Timesteps [b] of DDPM, or shares of noise [b] of rectified flow."""
    labels: Tensor
    """Class labels [b] after dropping; NO_LABEL where there is none."""
    keep: Tensor | None = None
    """Kept token indices [b,kept] of a masked pass."""


class ClassConditional(Task[NoisyBatch]):
    """A task of models that denoise latents by class.

    Args:
        conditioning: Dropping of labels, and MDT's masked pass.
        evaluation: Samples and figures while training.
    """

    batch_type: ClassVar = NoisyBatch
    needs = frozenset({"latents", "labels"})
    all_passes = frozenset(PASSES)
    resumable = frozenset({"evaluation"})
    generates = True
    guides = True

    def __init__(self, conditioning: Conditioning, evaluation: SampleEvaluation):
        self.conditioning, self.evaluation = conditioning, evaluation
        self.passes = conditioning.passes
        self.tokens = 0
        """n of the student, for masked passes."""

    @abstractmethod
    def times(self, uniform: Tensor, side: int) -> Tensor:
        """Times [b] of uniform draws [b], of latents of a height and width."""

    @abstractmethod
    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t [b,c,y,x] at times [b]."""

    @abstractmethod
    def process(self, model: nn.Module) -> Process:
        """The way to noise that a model has learned."""

    def use(self, dataset: Dataset, student: nn.Module) -> None:
        super().use(dataset, student)
        check_conditional("student", student)
        if MASKED in self.passes:
            self.tokens = Denoiser(student).tokens

    def check(self, role: str, model: nn.Module) -> None:
        self.check_model(role, model)
        check_fit(role, model, self.dataset)

    def check_model(self, role: str, model: nn.Module) -> None:
        """It must denoise latents by class, and know the masked pass if there is one."""
        check_conditional(role, model)
        self.conditioning.check_model(role, model)

    def remarks(self, student: nn.Module) -> Sequence[str]:
        return class_names.missing(self.dataset, Denoiser(student).classes)

    def describe(self, student: nn.Module) -> None:
        class_names.record(student, class_names.learned(self.dataset, Denoiser(student).classes))

    def check_teacher(
        self, teacher: nn.Module, seed: int, device: torch.device, measure: bool
    ) -> Iterator[TeacherFinding]:
        process, dropout = self.process(teacher), self.conditioning.label_dropout
        for message, fault in teacher_check.findings(teacher, self.dataset, process, seed, device, dropout, measure):
            yield TeacherFinding(message, fault)

    def draw(self, draws: Draws) -> Sequence[NoisyBatch]:
        """The batch of each pass. As in the public recipe they share x_0 and t, not the noise and the label drops."""
        indices = draws.indices(len(self.dataset))
        sample = self.dataset.batch(indices, draws)
        x_0 = sample["latents"]
        t = self.times(draws.uniform("timestep"), x_0.shape[-1])
        batches = []
        for name in self.passes:
            noise = draws.normal(f"noise/{name}", x_0.shape[1:])
            batch = NoisyBatch(
                pass_name=name,
                step=draws.step,
                indices=torch.from_numpy(indices),
                x_0=x_0,
                noise=noise,
                x_t=self.add_noise(x_0, noise, t),
                t=t,
                labels=self.conditioning.labels(draws, name, sample["labels"]),
                keep=self.conditioning.keep(draws, name, self.tokens),
            )
            batches.append(batch)
        return batches

    def unconditional(self, batch: NoisyBatch) -> NoisyBatch:
        return replace(batch, labels=torch.full_like(batch.labels, NO_LABEL))

    def tokens_seen(self, model: nn.Module, batch: NoisyBatch) -> int:
        return Denoiser(model).tokens if batch.keep is None else batch.keep.shape[1]

    def example(self, model: nn.Module, images: int, device: torch.device) -> Sequence[NoisyBatch]:
        denoiser = Denoiser(model)
        draw = None if device.type == "meta" else torch.Generator(device).manual_seed(0)
        x = torch.randn(images, *denoiser.shape, device=device, generator=draw)
        uniform = torch.rand(images, generator=torch.Generator().manual_seed(0))
        t = self.times(uniform, denoiser.shape[-1]).to(device)
        labels = torch.zeros(images, dtype=torch.long, device=device)
        batches = []
        for name in self.passes:
            keep = self.conditioning.example_keep(name, denoiser.tokens, images, device)
            batches.append(NoisyBatch(name, 0, labels, x, x, x, t, labels, keep))
        return batches

    def check_evaluation(self, student: nn.Module, kept: Kept | None) -> None:
        if kept is not None:
            self.evaluation.fit(student, kept)

    def evaluate(self, student: nn.Module, run: Path, step: int) -> dict[str, float] | None:
        return self.evaluation.run(student, run, step)

    def evaluated(self, run: Path, step: int, logged: bool) -> bool:
        return self.evaluation.finished(run, step, logged)
