"""Text to image: any transformer of diffusers that has an adapter, by rectified flow or by DDPM, as its pipeline is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dit_shd.core.config import check_ranges
from dit_shd.core.distributed import joined
from dit_shd.core.errors import UserError
from dit_shd.core.places import expanded
from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import Draws
from dit_shd.data.datasets import DATASETS, Dataset
from dit_shd.data.latent_origin import Kept
from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.adapters import Adapter, adapter_of, adapter_of_model, settings_of
from dit_shd.diffusion.flow import TimestepDensity, Weighting
from dit_shd.diffusion.guidance import Guidance
from dit_shd.diffusion.objectives import checked_gamma
from dit_shd.diffusion.process import Process
from dit_shd.diffusion.teacher_check import latents_fault
from dit_shd.diffusion.text_models import check_fit, check_learned, check_sides
from dit_shd.diffusion.text_process import process_of
from dit_shd.diffusion.text_rows import TextRows
from dit_shd.diffusion.text_teacher_check import TextTeacherCheck
from dit_shd.diffusion.validation_loss import ValidationLoss, check_held_out
from dit_shd.tasks import Batch, Output, Task, TeacherFinding, Terms

DENSITY, NO_EVALUATION, APART = TimestepDensity(name="logit_normal"), ValidationLoss(), TextRows()


@dataclass(frozen=True, eq=False)
class TextBatch(Batch):
    """Noised latents with text."""

    x_0: Tensor
    """Latents [b,c,y,x]."""
    noise: Tensor
    """Shaped like x_0."""
    x_t: Tensor
    """x_0 noised to time t."""
    t: Tensor
    """Shares of noise [b], or timesteps [b] of DDPM."""
    text: Tensor
    """Embeddings [b,m,e] after dropping."""
    text_mask: Tensor
    """Which tokens are a prompt's, bool [b,m]."""
    text_pooled: Tensor | None = None
    """[b,p], of models that are given one vector of a prompt."""
    text_rows: TextRows = APART
    """Which rows of a layer are a sample's own."""

    def row_weight(self, tokens: int) -> Tensor | None:
        """Padding of prompts takes no part; see TextRows."""
        if tokens not in self._row_weights:
            y, x = self.x_t.shape[-2:]
            self._row_weights[tokens] = self.text_rows.weight(self.text_mask, (y, x), tokens)
        return self._row_weights[tokens]

    def is_of_image(self, layer: str) -> bool:
        return not self.text_rows.is_text(layer)

    def image_keys(self, rows: int, keys: int) -> slice | None:
        y, x = self.x_t.shape[-2:]
        return self.text_rows.image_keys((y, x), rows, keys)

    @cached_property
    def _row_weights(self) -> dict[int, Tensor | None]:
        """By the number of rows: each of them may wait for a GPU."""
        return {}

    @property
    def condition(self) -> TextCondition:
        """What a model is given of the prompts."""
        return TextCondition(self.text, self.text_mask, self.text_pooled)


class TextToImage(Task[TextBatch]):
    """Velocity prediction (rectified flow; SD3, arXiv 2403.03206) or noise prediction (DDPM), as the models have it.

    What the models predict, and the pipeline's shift or noise schedule, follow from the data's pipeline.

    Args:
        text_dropout: Share of captions dropped, for guidance.
        timestep_density: Of flow: how often each share of noise is trained: name (uniform, logit_normal, mode,
            cosmap), mean, std, scale, shift, base_side. An empty shift is the pipeline scheduler's own, 1 none.
        weighting: Of flow: of the error by the share of noise: none, cosmap or sigma_sqrt.
        min_snr_gamma: Of DDPM: weight min(SNR, gamma)/SNR of the error; empty for none.
        embedded_guidance: The scale that guidance-distilled models are given; empty: their training script's.
        adapter: Somebody's own adapter of the models' class, with dots; empty: as the data were encoded.
        evaluation: Loss on held-out data while training: data, count.
        side: Height and width of latents where there are no data, for dry_run; empty: the model's sample_size.
        text_tokens: Tokens of text where there are no data; empty: as the pipeline makes them.
    """

    batch_type: ClassVar = TextBatch
    needs = frozenset({"latents", "text", "text_mask"})
    resumable = frozenset({"evaluation"})
    generates, prompted = True, True
    guides = True

    def __init__(
        self,
        text_dropout: float = 0.1,
        timestep_density: TimestepDensity = DENSITY,
        weighting: Weighting = "none",
        min_snr_gamma: float | None = None,
        embedded_guidance: float | None = None,
        adapter: str | None = None,
        evaluation: ValidationLoss = NO_EVALUATION,
        side: int | None = None,
        text_tokens: int | None = None,
    ):
        timestep_density.check("task.timestep_density.")
        if not 0 <= text_dropout <= 1:
            raise UserError(f"task.text_dropout: wanted a number from 0 to 1, found {text_dropout}")
        self.text_dropout, self.density, self.gamma = text_dropout, timestep_density, checked_gamma(min_snr_gamma)
        for name, value, least in (
            ("embedded_guidance", embedded_guidance, 0),
            ("side", side, 1),
            ("text_tokens", text_tokens, 1),
        ):
            if value is not None and value < least:
                raise UserError(f"task.{name}: wanted {least} or more, found {value}")
        self.weighting: Weighting = weighting
        self.embedded_guidance, self.named_adapter = embedded_guidance, adapter
        check_ranges(evaluation, "task.evaluation.")
        self.side, self.text_tokens, self.evaluation = side, text_tokens, evaluation
        self._sizes: tuple[int, int, int] | None = None
        """Of the data: latents' rows and columns, tokens of text."""
        self._recorded: str | None = None
        """The adapter that the data were encoded with, where it is somebody's own."""
        self._judged_by_learned = False
        """Whether the held-out data are those that are learned."""

    def expect(self, data: Plugin) -> None:
        """The sizes of data that are there already."""
        path = DATASETS.filled(data, "data").options.get("path")
        if path is not None and Path(expanded(path)).is_dir():
            dataset: Dataset = DATASETS.build(data, "data")
            self.check_data(dataset)
            self._sizes, self._recorded = _sizes(dataset), _recorded(dataset)

    def use(self, dataset: Dataset, student: nn.Module) -> None:
        super().use(dataset, student)
        self._sizes, self._recorded = _sizes(dataset), _recorded(dataset)
        scale = self._adapter(student).embedded(settings_of(student), self.embedded_guidance)
        self.record = None if self.record is None else replace(self.record, guidance=scale)
        self.empty: TextCondition = dataset.empty  # type: ignore[attr-defined]
        self.process = self._process(student)
        self.rows = self._adapter(student).text_rows(settings_of(student))

    def check_model(self, role: str, model: nn.Module) -> None:
        """Its class must have an adapter."""
        self._adapter(model)

    def check(self, role: str, model: nn.Module) -> None:
        """It must take the data's latents and text, and have learned the text encoders that made it."""
        assert self.record is not None
        check_learned(role, model, self._adapter(model), self.record, self.process.kind)
        text = self.empty
        pooled = None if text.pooled is None else text.pooled.shape[-1]
        for shape in self.dataset.shapes or [self.dataset.shape]:
            check_fit(role, model, self._adapter(model), shape, (text.embeddings.shape[-1], pooled))

    def check_together(self, models: Mapping[str, nn.Module]) -> None:
        if self.embedded_guidance is None or any(settings_of(x).get("guidance_embeds") for x in models.values()):
            return
        each = " and ".join(f"the {role} ({type(model).__name__})" for role, model in models.items())
        raise UserError(f"task.embedded_guidance: wanted a model that is given a guidance scale, found {each}")

    def remarks(self, student: nn.Module) -> Sequence[str]:
        line = "task.evaluation.data: is the data that is learned, so that its loss is not of held-out data"
        return [line] if self._judged_by_learned else []

    def check_teacher(
        self, teacher: nn.Module, seed: int, device: torch.device, measure: bool
    ) -> Iterator[TeacherFinding]:
        yield TeacherFinding("", latents_fault(teacher, self.dataset))
        if not measure:
            return
        adapter, guidance = self._adapter(teacher), self.embedded_guidance
        check = TextTeacherCheck(self.process, self.dataset, seed, device, adapter, self.empty, guidance)
        for message, fault in check.findings(teacher, compare=self.text_dropout < 1):
            yield TeacherFinding(message, fault)

    def draw(self, draws: Draws) -> Sequence[TextBatch]:
        indices = self.dataset.indices(draws)
        sample = self.dataset.batch(indices, draws)
        x_0 = sample["latents"]
        t = self.process.times(draws.uniform("timestep"), x_0.shape)
        noise = draws.normal("noise/plain", x_0.shape[1:])
        text = TextCondition(sample["text"], sample["text_mask"], sample.get("text_pooled"))
        text = text.replaced(draws.uniform("text/plain") < self.text_dropout, self.empty)
        batch = TextBatch(
            pass_name="plain",
            step=draws.step,
            indices=torch.from_numpy(indices),
            x_0=x_0,
            noise=noise,
            x_t=self.process.add_noise(x_0, noise, t),
            t=t,
            text=text.embeddings,
            text_mask=text.mask,
            text_pooled=text.pooled,
            text_rows=self.rows,
        )
        return [batch]

    def predict(self, model: nn.Module, batch: TextBatch) -> Output:
        adapter = self._adapter(model)
        output = adapter.predict(model, batch.x_t, batch.t, batch.condition, self.embedded_guidance)
        return Output(*self.process.prediction(output, batch.x_t, batch.t))

    def unconditional(self, batch: TextBatch) -> TextBatch:
        """With the embeddings of the empty prompt."""
        text = batch.condition.replaced(torch.ones_like(batch.indices, dtype=torch.bool), self.empty)
        return replace(batch, text=text.embeddings, text_mask=text.mask, text_pooled=text.pooled)

    def guided(self, conditional: Output, unconditional: Output, batch: TextBatch, guidance: Guidance) -> Output:
        """As the pipeline guides; a variance is the conditional one, and its mean that of the guided noise."""
        share = self.process.share(batch.t)
        prediction = guidance.combined(conditional.prediction, unconditional.prediction, share)
        if self.record is not None:
            adapter = adapter_of(self.record.transformer_class, self.named_adapter or self._recorded)
            prediction = adapter.guided(prediction, conditional.prediction)
        v = conditional.extra.get("variance")
        return Output(prediction, self.process.extra(prediction, v, batch.x_t, batch.t))

    def losses(self, output: Output, batch: TextBatch) -> Terms:
        x_0, noise, x_t = batch.x_0, batch.noise, batch.x_t
        return self.process.losses(output.prediction, output.extra, x_0, noise, x_t, batch.t)

    def tokens_seen(self, model: nn.Module, batch: TextBatch) -> int:
        side = self._adapter(model).multiple(settings_of(model))
        return batch.x_t.shape[-2] * batch.x_t.shape[-1] // side**2

    def example(self, model: nn.Module, images: int, device: torch.device) -> Sequence[TextBatch]:
        adapter, config = self._adapter(model), settings_of(model)
        self.process = self._process(model)
        draw = None if device.type == "meta" else torch.Generator(device).manual_seed(0)
        width, pooled = adapter.text_widths(config)
        side = self.side or config.get("sample_size")
        side = side if isinstance(side, int) else adapter.example_side
        rows, columns, tokens = self._sizes or (side, side, self.text_tokens or adapter.example_tokens)
        name, fixed = type(model).__name__, adapter.example_tokens
        whose = "the data's" if self._sizes else "those of task.side" if self.side else "those of its sample_size"
        check_sides(name, config, adapter, (rows, columns), whose)
        if adapter.fixed_tokens and tokens != fixed:
            raise UserError(f"task.text_tokens: a {name} takes {fixed}, found {tokens}; leave it out")
        x = torch.randn(images, adapter.channels(config), rows, columns, device=device, generator=draw)
        text = torch.randn(images, tokens, width, device=device, generator=draw)
        mask = torch.ones(images, tokens, dtype=torch.bool, device=device)
        vector = None if pooled is None else torch.randn(images, pooled, device=device, generator=draw)
        if self.record is None:  # no data: the empty prompt is one token
            self.empty = TextCondition.of(text[:1, :1], None, None if vector is None else vector[:1])
        t = self.process.times(torch.full((images,), 0.5, device=device), x.shape)
        indices = torch.zeros(images, dtype=torch.long, device=device)
        return [TextBatch("plain", 0, indices, x, x, x, t, text, mask, vector, adapter.text_rows(config))]

    def check_evaluation(self, student: nn.Module, kept: Kept | None) -> None:
        """The held-out data must be there, and be of the text encoders and the autoencoder that the run's are of."""
        held_out = self.evaluation.open() if kept is not None else None
        if held_out is None:
            return
        self.check_data(held_out)
        check_held_out(self.dataset, held_out, student, self._adapter(student))
        learned, judged = self.dataset.origin, held_out.origin
        if learned is not None and judged is not None:
            self._judged_by_learned = bool(learned.places) and learned.places == judged.places

    def evaluate(self, student: nn.Module, run: Path, step: int) -> dict[str, float] | None:
        if self.evaluation.data is None or not joined().is_main_process:
            return None
        held_out = self.evaluation.open()
        assert held_out is not None
        adapter = self._adapter(student)
        student = student.to(joined().device or "cpu")
        return self.evaluation.figures(student, held_out, adapter, self.process, self.embedded_guidance)

    def _adapter(self, model: nn.Module) -> Adapter:
        return adapter_of_model(model, self.named_adapter or self._recorded)

    def _process(self, model: nn.Module) -> Process:
        scheduler = {} if self.record is None else self.record.scheduler
        adapter = self._adapter(model)
        self._check_keys(adapter)
        multiple = adapter.multiple(settings_of(model))
        options = self.density, self.weighting, self.gamma, multiple, adapter.shift
        return process_of(adapter.process, scheduler, *options)

    def _check_keys(self, adapter: Adapter) -> None:
        """Refuse keys of the other process, which would change nothing."""
        of_flow = {"weighting": self.weighting != "none", "timestep_density": self.density != DENSITY}
        given = of_flow if adapter.process == "ddpm" else {"min_snr_gamma": self.gamma is not None}
        idle = [f"task.{name}" for name, changed in given.items() if changed]
        if idle:
            process, other = ("DDPM", "flow") if adapter.process == "ddpm" else ("flow", "DDPM")
            raise UserError(f"{' and '.join(idle)}: of {other}; a {adapter.transformer} is of {process}; leave it out")


def _recorded(dataset: Dataset) -> str | None:
    return None if dataset.record is None else dataset.record.adapter


def _sizes(dataset: Dataset) -> tuple[int, int, int]:
    """Rows and columns of latents, and tokens of text, of data."""
    y, x = dataset.shape[-2:]
    return y, x, dataset.text(np.zeros(1, dtype=int)).tokens  # type: ignore[attr-defined]
