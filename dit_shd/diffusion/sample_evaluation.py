"""Samples of a student and their figures: the evaluation of tasks whose models draw images."""

import json
import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from dit_shd.core.config import make, option, resolve
from dit_shd.core.distributed import joined, run_on_main
from dit_shd.core.errors import UserError
from dit_shd.core.hashing import sha256_of_tensors
from dit_shd.core.json_files import read_object
from dit_shd.core.places import Place
from dit_shd.core.plugins import Plugin
from dit_shd.core.run_files import DRAWN
from dit_shd.data.decoder import Decoder
from dit_shd.data.image_sets import ArrayImages
from dit_shd.data.latent_origin import AUTO, Kept, decoder
from dit_shd.diffusion.generation import sample_to_file, settings
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.diffusion.sample_files import MERGED, lock_file, parts_of
from dit_shd.evaluation import results
from dit_shd.evaluation.evaluate import EvaluateConfig, evaluate
from dit_shd.evaluation.features import FeatureNetwork, build_network
from dit_shd.evaluation.metrics import METRICS
from dit_shd.evaluation.reference import Reference, open_reference
from dit_shd.evaluation.scoring import Chosen, select_metrics
from dit_shd.models.offload import device_of
from dit_shd.models.shape import shape_of

UNCOMPARED = ("run", "diffusion_steps")
"""Keys of samples that are not the evaluation's."""
_log = logging.getLogger("dit_shd")


@dataclass(frozen=True)
class SampleEvaluation:
    """Images of a student and their figures, while it trains."""

    count: int = option(1000, "images; figures of other counts are not comparable")
    steps: int = option(50, "sampling steps")
    guidance: float = option(1.0, "classifier-free guidance scale; 1 for none")
    labels: Literal["random", "balanced"] = option("balanced", "class of image i: drawn, or i modulo the classes")
    reference: Place | None = option(None, "what samples are compared with, as in dit-shd evaluate; empty: grids only")
    features: Plugin = option(Plugin("inception"), "feature network")
    sample: dict[str, Any] = option({}, "more keys of dit-shd sample (vae, batch_size, solver, ...)")
    evaluate: dict[str, Any] = option({}, "more keys of dit-shd evaluate (metrics, batch_size, ...)")
    keep: bool = option(False, "keep every evaluation's images (npz); its grid and figures are kept anyway")

    def sampling(self, run: Path, step: int) -> SampleConfig:
        """The config of `dit-shd sample`."""
        values = {"count": self.count, "steps": self.steps, "guidance": self.guidance, "labels": self.labels}
        out = run / DRAWN / f"step_{step:08d}.npz"
        return make(
            SampleConfig,
            {**values, **self.sample, "run": str(run), "out": out, "force": True},
            "task.evaluation.sample",
        )

    def scoring(self, samples: Path) -> EvaluateConfig:
        """The config of `dit-shd evaluate`."""
        values = {"reference": self.reference, "features": resolve(self.features), **self.evaluate}
        values |= {"samples": str(samples), "out": samples.with_suffix(".results.json"), "force": True}
        return make(EvaluateConfig, values, "task.evaluation.evaluate")

    def check(self, prediction: str, diffusion_steps: int = 1000) -> None:
        """Refuse numbers out of their ranges, and solvers for models of another kind.

        Args:
            prediction: What the student predicts.
            diffusion_steps: Of its noise schedule, if it has one.

        Raises:
            UserError: Naming the key.
        """
        sampling = replace(self.sampling(Path("run"), 0), diffusion_steps=diffusion_steps)
        scoring = None if self.reference is None else self.scoring(Path("run.npz"))
        try:
            sampling.of_prediction(prediction).check()
            if scoring is not None:
                scoring.check()
        except UserError as error:  # training has keys of the same names
            raise UserError(f"task.evaluation: {error}") from error

    def fit(self, student: nn.Module, kept: Kept) -> None:
        """Refuse before training what could not be done after days of it.

        Args:
            student: What would be sampled from.
            kept: The autoencoder of the data's latents.

        Raises:
            UserError: No such autoencoder or reference, or samples that features, reference or metrics do not fit.
        """
        shape = shape_of(student)
        sampling, device = self.sampling(Path("run"), 0), device_of(student)
        try:
            if sampling.vae == AUTO and kept.autoencoder is not None:
                decode = Decoder(kept.autoencoder)
            else:
                decode = decoder(sampling.vae, kept.origin, shape.channels, device)
        except UserError as error:
            raise UserError(f"task.evaluation.sample.{error}") from error
        if decode.keep:
            raise UserError(
                "task.evaluation.sample.vae: null keeps latents, and evaluations are of images; leave it out"
            )
        if self.reference is None:
            return
        latents = torch.zeros(1, shape.channels, 2, 2)  # norms of a single value are an error
        _, channels, side, _ = decode(latents).shape
        self._evaluator((self.count, shape.side * side // 2, shape.side * side // 2, channels))

    def _evaluator(self, size: tuple[int, ...]) -> tuple[Reference, FeatureNetwork, Chosen]:
        """What samples of this size [n,y,x,c] are compared with, in which features and by which metrics.

        Raises:
            UserError: Samples that features, reference or metrics do not fit.
        """
        scoring = self.scoring(Path("run.npz"))
        network = build_network(scoring.features, "task.evaluation.features")
        crop = size[1:] if scoring.crop else None
        reference = open_reference(scoring.reference, "task.evaluation.reference", crop)
        samples = ArrayImages(np.broadcast_to(np.uint8(0), size), "evaluation")
        network.check(samples.shape[1:], "evaluation")
        reference.check(samples, network)
        return reference, network, select_metrics(scoring.metrics, samples, reference, network)[0]

    def place(self, run: Path, step: int) -> Path:
        """The grid of a step's samples; the other files have its name."""
        return run / DRAWN / f"step_{step:08d}.png"

    def finished(self, run: Path, step: int, logged: bool) -> bool:
        """Whether nothing is left to do.

        Args:
            run: The run folder.
            step: Of training.
            logged: Whether the step's figures are in the run's log.
        """
        grid = self.place(run, step)
        done = logged if self.reference else grid.exists()
        return done and (self.keep or not grid.with_suffix(".npz").exists())

    def run(self, student: nn.Module, run: Path, step: int) -> dict[str, float] | None:
        """Sample from `student` and score the images; the figures, in the main process, if there is a reference."""
        sampling = self.sampling(run, step)
        assert sampling.out is not None
        main, out = joined().is_main_process, Path(sampling.out)
        grid, record = out.with_suffix(".png"), out.with_suffix(".results.json")
        figures: dict[str, float] | None = None
        run_on_main(lambda: self._drop_others(sampling, out, student))
        if not (record if self.reference else grid).exists():
            if run_on_main(lambda: _to_sample(out)):
                sample_to_file(sampling, student)
            if main and self.reference:
                evaluate(self.scoring(out), say=lambda line: None)
        if main and self.reference:
            figures = dict(results.read_record(record)["figures"])  # type: ignore[index]
            _log.info("step %d: %s", step, ", ".join(f"{k} {v:.4g}" for k, v in figures.items()))
        if main and not self.keep:
            out.unlink(missing_ok=True)
        return figures

    def _drop_others(self, sampling: SampleConfig, out: Path, student: nn.Module) -> None:
        """Remove what another evaluation left of this step: a run may go on with other settings than it began with.

        Weights may be others, too: a step that is taken again after another schedule, or on another machine.
        """
        record, parts = out.with_suffix(".results.json"), parts_of(out)
        drawn = read_object(parts / f"{MERGED}.json") or read_object(out.with_suffix(".json")) or {}
        scored = read_object(record) or {}
        wanted = {k: v for k, v in settings(sampling).items() if k not in UNCOMPARED and v not in (None, "auto")}
        same_weights = drawn.get("model_sha256") == sha256_of_tensors(student)
        if not same_weights or any(drawn.get(key, value) != value for key, value in wanted.items()):
            for suffix in (".json", ".png", ".npz"):
                out.with_suffix(suffix).unlink(missing_ok=True)
            shutil.rmtree(parts, ignore_errors=True)
            record.unlink(missing_ok=True)
        elif scored and self.reference is not None and self._scored_otherwise(scored, out):
            record.unlink()

    def _scored_otherwise(self, scored: dict[str, Any], out: Path) -> bool:
        """Whether a record is of another reference, other features or other metrics than those of now."""
        chosen = self.scoring(out)
        reference, network, metrics = self._evaluator((scored["samples"]["n"], *scored["samples"]["shape"]))
        now = {
            "reference": {"path": chosen.reference, **reference.describe()},
            "features": results.about_network(network, chosen.features.name),
            "metrics": [resolve(METRICS.filled(plugin)) for plugin, _ in metrics],
        }
        now = json.loads(json.dumps(now))
        known, wanted = (
            (entry["reference"]["path"], entry["features"]["name"], sorted(m["name"] for m in entry["metrics"]))
            for entry in (scored, now)
        )
        return known != wanted or results.evaluator_difference(scored, now) is not None


def _to_sample(out: Path) -> bool:
    """Whether the images are not there yet; shards of another attempt (perhaps by other processes) are removed."""
    parts = parts_of(out)
    if (parts / MERGED).exists():
        return True
    shutil.rmtree(parts, ignore_errors=True)
    lock_file(out).unlink(missing_ok=True)  # of one that was killed: the run's own lock keeps others out
    return not out.exists()
