"""The loss of a text-to-image model on held-out data; it falls as images get better (SD3, arXiv 2403.03206, 5.3)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dit_shd.core.config import option
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import Draws
from dit_shd.data.datasets import DATASETS, Dataset
from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.adapters import Adapter, settings_of
from dit_shd.diffusion.process import Process
from dit_shd.diffusion.text_models import check_sides
from dit_shd.models.evaluation_mode import evaluated

LEVELS = 8
"""Of noise, evenly spaced in the density, which a sample is at one of."""
AT_ONCE = 32
LOSS = "validation_loss"


@dataclass(frozen=True)
class ValidationLoss:
    """The mean loss of a model on some samples of a dataset (`Dataset.first`), at fixed times and with fixed noise."""

    data: Plugin | None = option(None, "held-out data: {name: text_latents, path: ...}; empty for no evaluation")
    count: int = option(512, "samples; figures of other counts are not comparable", range=(1, 1e7))

    def open(self) -> Dataset | None:
        """The held-out data.

        Raises:
            UserError: There are none of that name, or fewer samples than wanted.
        """
        if self.data is None:
            return None
        dataset = DATASETS.build(self.data, "task.evaluation.data")
        if len(dataset) < self.count:
            raise UserError(
                f"task.evaluation.count: wanted {self.count} samples or more in task.evaluation.data, found "
                f"{len(dataset)}; set count={len(dataset)}: losses of other counts are not comparable"
            )
        return dataset

    @torch.no_grad()
    def figures(
        self, model: nn.Module, dataset: Dataset, adapter: Adapter, process: Process, guidance: float | None
    ) -> dict[str, float]:
        """The loss; a pure function of model and data.

        Args:
            model: In any mode; left in it.
            dataset: Held-out data.
            adapter: The adapter of the model's class.
            process: The process of its pipeline.
            guidance: As in Adapter.predict.
        """
        device, losses = next(model.parameters()).device, []
        samples = dataset.first(self.count)
        for positions in _of_one_shape(dataset, samples):
            draws = Draws(0, 0, positions, self.count)
            sample = {name: x.to(device) for name, x in dataset.batch(samples[positions], draws).items()}
            x_0, noise = sample["latents"], draws.normal("validation", sample["latents"].shape[1:]).to(device)
            levels = (torch.tensor(positions, dtype=torch.float64) % LEVELS + 0.5) / LEVELS
            t = process.times(levels, x_0.shape).to(device)
            text = TextCondition(sample["text"], sample["text_mask"], sample.get("text_pooled"))
            x_t = process.add_noise(x_0, noise, t)
            with evaluated(model):
                prediction, extra = process.prediction(adapter.predict(model, x_t, t, text, guidance), x_t, t)
            losses.append(sum(process.losses(prediction, extra, x_0, noise, x_t, t).values()))
        return {LOSS: float(torch.cat([torch.as_tensor(loss) for loss in losses]).mean())}


def check_held_out(run: Dataset, held_out: Dataset, student: nn.Module, adapter: Adapter) -> None:
    """Refuse held-out data that are of another autoencoder, other text encoders or other sizes than a run's.

    Buckets may be of other sizes than the run's; the student must take each.

    Args:
        run: The data that are learned.
        held_out: Those that a loss is measured on.
        student: What it is measured of.
        adapter: The adapter of its class.

    Raises:
        UserError: Naming what differs.
    """
    whole = slice(0, 1 if run.shapes or held_out.shapes else 3)  # of buckets the channels
    if tuple(held_out.shape[whole]) != tuple(run.shape[whole]):
        wanted, size = (" x ".join(map(str, data.shape)) for data in (run, held_out))
        raise UserError(f"task.evaluation.data: wanted latents of the run's size, {wanted}, found {size}")
    for shape in held_out.shapes or [held_out.shape]:
        check_sides("task.evaluation.data: the student", settings_of(student), adapter, shape[1:], "one's")
    records = [record for record in (run.record, held_out.record) if record is not None]
    if len({record.text_sha256 for record in records}) > 1:
        raise UserError("task.evaluation.data: has embeddings of other text encoders than the run's data")
    tokens = {record.text_tokens for record in records}
    if len(tokens) > 1:
        raise UserError(
            f"task.evaluation.data: has other text_tokens than the run's data ({', '.join(map(str, tokens))})"
        )
    learned, judged = run.origin, held_out.origin
    if learned is None or judged is None:
        return
    if (learned.encoder_sha256, learned.vae_scaling) != (judged.encoder_sha256, judged.vae_scaling):
        raise UserError(
            f"task.evaluation.data: its latents are those of {judged.words}, and the run's of {learned.words}"
        )


def _of_one_shape(dataset: Dataset, samples: np.ndarray) -> Iterator[list[int]]:
    """Positions among some samples, in groups of at most AT_ONCE whose latents have one shape."""
    for first in range(0, len(samples), AT_ONCE):
        together = samples[first : first + AT_ONCE]
        for group in dataset.of_one_shape(together):
            yield (first + np.flatnonzero(np.isin(together, group))).tolist()
