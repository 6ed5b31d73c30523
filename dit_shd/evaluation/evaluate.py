"""Evaluation: from files of samples and a reference to figures, a table and results.json.

    samples, reference -> features (one pass) -> FeatureSet -> metrics -> results.json

Everything that can be refused is refused before the network runs.
"""

import json
import re
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from dit_shd.core import environment
from dit_shd.core.config import REQUIRED, changed, check_ranges, checked, option, resolve
from dit_shd.core.devices import find_device
from dit_shd.core.errors import UserError
from dit_shd.core.places import Place
from dit_shd.core.plugins import Plugin
from dit_shd.data.image_sets import ImageSet
from dit_shd.data.open_images import open_images
from dit_shd.evaluation import results
from dit_shd.evaluation.bootstrap import SEED, intervals
from dit_shd.evaluation.comparability import ONE_MODEL, check_alike, of_one_model, reasons_against, sampled_differently
from dit_shd.evaluation.extraction import extract_features
from dit_shd.evaluation.feature_set import FeatureSet
from dit_shd.evaluation.features import FeatureNetwork, build_network
from dit_shd.evaluation.metrics import METRICS
from dit_shd.evaluation.real_scale import real_scale, shared_scale
from dit_shd.evaluation.reference import Reference, open_reference
from dit_shd.evaluation.scoring import Chosen, compute_metrics, select_metrics
from dit_shd.evaluation.teacher_row import SamplingCommand, commands, shared_row, teacher_row


@dataclass(frozen=True)
class EvaluateConfig:
    """What is compared with what, and how."""

    samples: Place | list[Place] = option(
        REQUIRED, "npz (arr_0: uint8 [n,y,x,c]), images (folder, Parquet, tars), a run's shards, or dataset[:split]"
    )
    reference: Place = option(REQUIRED, "the same, or a statistics file (dit-shd statistics, or ADM's npz)")
    crop: bool = option(False, "cut reference images of any size to the samples' size, as dit-shd encode does")
    features: Plugin = option(Plugin("inception"), "feature network, a file of dit_shd/evaluation/features")
    metrics: list[Plugin] | None = option(None, "files of dit_shd/evaluation/metrics; all that apply if left out")
    seeds: int = option(
        1, "files of samples, from one with seed0 in its path: seed0, seed1, ...; mean and spread", range=(1, 1e6)
    )
    resamples: int = option(
        0, "resamplings behind 95% intervals, 10 at least (100 is a good number); 0 for none", range=(0, 1e6)
    )
    batch_size: int = option(64, "images per forward pass of the feature network", range=(1, 1e6))
    device: str = option("auto", "where the feature network runs: auto, cpu, cuda, cuda:1")
    out: Path | None = option(
        None, "the results file; if left out results.json beside the samples, NAME.results.json where that is taken"
    )
    page: bool = option(True, "write a page (.html) beside the results file")
    force: bool = option(False, "overwrite a results file that holds another result")

    def files(self) -> list[str]:
        """The sample files, one for each seed.

        Raises:
            UserError: No file, or `seeds` and no single file with a seed in its path.
        """
        files = [self.samples] if isinstance(self.samples, str) else list(self.samples)
        if not files:
            raise UserError("samples: wanted at least one file of samples, found none")
        if self.seeds == 1:
            return files
        split = re.split(r"(?<=seed)(\d+)", files[0]) if len(files) == 1 else []
        if len(split) != 3:
            raise UserError(
                f"seeds={self.seeds}: wanted one file with seedN in its path, once, found {', '.join(files)}; "
                "name the files one by one instead"
            )
        before, first, after = split
        return [f"{before}{int(first) + i}{after}" for i in range(self.seeds)]

    def check(self) -> None:
        """Check that the numbers are in their ranges.

        Raises:
            UserError: Naming the key, the range and the value.
        """
        check_ranges(self)
        if self.resamples and self.resamples < 10:
            raise UserError(f"resamples: wanted 0, or at least 10 for an interval, found {self.resamples}")


@dataclass(frozen=True)
class FeaturesAndImages:
    """Features and, where there are any, the images behind them."""

    features: FeatureSet
    images: ImageSet | None


@dataclass(frozen=True)
class Evaluation:
    """One evaluation as a page shows it."""

    record: Mapping[str, Any]
    """What is in results.json; with several files of samples `runs` holds those."""
    samples: FeaturesAndImages | None = None
    """None with several files of samples."""
    reference: FeaturesAndImages | None = None
    details: Mapping[str, Tensor] = field(default_factory=dict)
    """Results of the metrics for single images, by name."""


PageWriter = Callable[[Path, Evaluation], None]


def evaluate(
    config: EvaluateConfig,
    say: Callable[[str], None] = print,
    write_page: PageWriter | None = None,
    sampling: SamplingCommand | None = None,
) -> dict[str, Any]:
    """Compare samples with a reference, print the table and write the results file.

    The results file is results.json beside the samples; where that is of other samples, of another reference or of
    another network, NAME.results.json. Several files of samples are evaluated one after the other, each with its own
    results file beside it (NAME.results.json), which the same command reads again; the figures are then means over
    the files, with their spread (standard deviation, n - 1).

    Args:
        config: What is compared with what, and how.
        say: Takes each line for the user.
        write_page: Writes the page of one evaluation (reports.evaluation_page), if config.page is set.
        sampling: Gives the command that samples from the teacher (diffusion.teacher_sampling), for its missing row.

    Returns:
        The content of the results file.

    Raises:
        UserError: Any input that cannot be compared, or without `force` another result at `out`, or one of the same
            samples, reference and network with other options or contents.
    """
    config = checked(config, "evaluate")
    config.check()
    sets = [open_images(text, "samples") for text in config.files()]
    reference = open_reference(config.reference, "reference", sets[0].shape[1:] if config.crop else None)
    network, device = build_network(config.features), find_device(config.device, float64=True)
    check_alike(sets)
    for samples in sets:
        network.check(samples.shape[1:], "samples")
        reference.check(samples, network)
    chosen, left_out = select_metrics(config.metrics, sets[0], reference, network)
    job = _Job(config, reference, network.to(device), chosen, left_out, say, write_page, sampling)
    return job.run(sets[0], job.head(sets[0]), plain=True)[0] if len(sets) == 1 else _several(job, sets)


class _Job:
    """What all files of samples share; the reference's features are extracted once."""

    def __init__(
        self,
        config: EvaluateConfig,
        reference: Reference,
        network: FeatureNetwork,
        chosen: Chosen,
        left_out: list[str],
        say: Callable[[str], None],
        write_page: PageWriter | None,
        sampling: SamplingCommand | None,
    ) -> None:
        self.config, self.reference, self.network, self.chosen = config, reference, network, chosen
        self._left_out, self.say, self._sampling = left_out, say, sampling
        self.write_page = write_page if config.page else None
        self.about: dict[str, Any] = {
            "reference": {"path": reference.name, **reference.describe()},
            "features": results.about_network(network, config.features.name),
            "metrics": [resolve(METRICS.filled(plugin)) for plugin, _ in chosen],
            "resamples": config.resamples,
            "resampling_seed": SEED,
            "batch_size": config.batch_size,
            "device": str(network.device),
            **environment.about_process(),
        }

    @cached_property
    def reference_set(self) -> FeatureSet:
        return self.reference.features(self.network, self.config.batch_size)

    def head(self, samples: ImageSet) -> dict[str, Any]:
        """All of the record that is known before the network runs."""
        why_not = reasons_against(samples, self.reference, self.network, [plugin for plugin, _ in self.chosen])
        head = {"adm_comparable": _verdict(why_not), "samples": results.about_samples(samples), **self.about}
        return json.loads(json.dumps(head))

    def guard(self, out: Path, record: dict[str, Any]) -> None:
        """Refuse to overwrite another result, or a page that is not the one of the result beside it."""
        results.check_before(out, record, self.config.force)
        page = out.with_suffix(".html")
        if self.write_page is not None and (
            page == out or (page.exists() and not out.exists() and not self.config.force)
        ):
            taken = "the same file" if page == out else "a page of something else"
            raise UserError(
                f"{page}: wanted a place for the page, found {taken}; choose another out=FILE, or page=false"
            )

    def places(self, samples: ImageSet, head: dict[str, Any], plain: bool) -> list[Path]:
        """Names for the results file; `plain`: of the entire evaluation, whose `out` the user may have named."""
        return [self.config.out] if plain and self.config.out else results.result_paths(samples, head, plain)

    def run(self, samples: ImageSet, record: dict[str, Any], plain: bool) -> tuple[dict[str, Any], Path]:
        """Evaluate one file of samples.

        Args:
            samples: The samples.
            record: The head of their record.
            plain: Whether this is the only file of samples; as one of several, an existing result of the same inputs
                is used.

        Returns:
            The complete record, and its file.
        """
        config, places = self.config, self.places(samples, record, plain)
        out = results.place(places, record)
        self.guard(out, record)
        if not plain and not config.force and out.exists():
            self.say(f"{out}: evaluated before, reused")
            record = results.read_record(out) or {}
            return {**record, **self._teacher(samples, record)}, out
        reference_set = self.reference_set
        sample_set = extract_features(self.network, samples, config.batch_size, keep_spatial=config.resamples > 0)
        figures, details = compute_metrics(self.chosen, sample_set, reference_set)
        record = {"figures": figures, **record, "adm_comparable": self._verdict(record, sample_set)}
        record |= self._teacher(samples, record)
        record["real"] = real_scale(next(iter(figures)), sample_set, reference_set)
        if config.resamples:
            metrics = [metric for _, metric in self.chosen]
            record["intervals"] = intervals(metrics, sample_set, reference_set, figures, config.resamples)
        record["notes"] = [f"samples: {note}" for note in samples.notes]
        record["notes"] += [f"reference: {note}" for note in self.reference.notes]
        record["notes"] += [*results.against_itself(record), *self._notes(sample_set, reference_set)]
        if "sidecar" not in record["samples"]:
            record["notes"].append(f"rounding, label policy and seed are not recorded: {samples.why_no_sidecar}")
        self.say(results.table(record))
        out = results.publish(places, record, config.force)
        self.say(f"written to {out}")
        if self.write_page is not None:
            page, behind = out.with_suffix(".html"), FeaturesAndImages(reference_set, self.reference.images)
            self.write_page(page, Evaluation(record, FeaturesAndImages(sample_set, samples), behind, details))
            self.say(f"and as a page to {page}")
        return record, out

    def _teacher(self, samples: ImageSet, record: dict[str, Any]) -> dict[str, Any]:
        """The entry of the teacher, with the commands that make its row where it is missing; none without a teacher."""
        path = samples.path or Path()
        row = teacher_row(record, path.parent)
        if row is not None and "why_not" in row and self._sampling is not None and path.is_file():
            row["commands"] = commands(path, changed(EvaluateConfig, resolve(self.config)), self._sampling)
        return {} if row is None else {"teacher": row}

    def _verdict(self, record: dict[str, Any], samples: FeatureSet) -> dict[str, Any]:
        """The head's verdict, with the reasons that only the features show."""
        reasons = [reason for _, metric in self.chosen for reason in metric.reasons_against(samples)]
        return _verdict([*record["adm_comparable"]["why_not"], *reasons])

    def _notes(self, samples: FeatureSet, reference: FeatureSet) -> list[str]:
        notes = list(self._left_out)
        if not samples.is_fid:
            notes.append(f"features {samples.title}: not FID, comparable only with figures of the same network")
        if self.config.resamples and samples.prompts is not None and not samples.prompts.any():
            notes.append("no intervals: the samples are of one prompt")
        return [*notes, *(note for _, metric in self.chosen for note in metric.notes(samples, reference))]


def _several(job: _Job, sets: list[ImageSet]) -> dict[str, Any]:
    """Evaluate one file after the other, then take means and spreads over all of them."""
    heads = [job.head(samples) for samples in sets]
    hashes = [head["samples"]["sha256"] for head in heads]
    if len(set(hashes)) < len(hashes):
        same = [samples.name for samples, sha256 in zip(sets, hashes) if hashes.count(sha256) > 1]
        raise UserError(f"samples: wanted different images in each file, found the same in {', '.join(same)}")
    entries: list[dict[str, Any]] = [{"samples": head["samples"]} for head in heads]
    joint = {**heads[0], "runs": entries}
    places = job.places(sets[0], joint, plain=True)
    for samples, head in zip(sets, heads):
        job.guard(results.place(job.places(samples, head, plain=False), head), head)
    job.guard(results.place(places, joint), joint)
    runs, files = zip(*(job.run(samples, head, plain=False) for samples, head in zip(sets, heads)))
    settings = [samples.sidecar or {} for samples in sets]
    names = [name for name in runs[0]["figures"] if not name.endswith(" std")]
    values = {name: [run["figures"][name] for run in runs] for name in names}
    record = {
        "figures": {name: statistics.mean(figures) for name, figures in values.items()},
        "spread": {name: statistics.stdev(figures) for name, figures in values.items()},
        **{key: value for key, value in joint.items() if key != "samples"},
        "adm_comparable": _verdict([reason for run in runs for reason in run["adm_comparable"]["why_not"]]),
        "teacher": shared_row([run.get("teacher") for run in runs]),
        "real": shared_scale(runs),
        "notes": [
            *dict.fromkeys(note for run in runs for note in run["notes"]),
            *sampled_differently([samples.name for samples in sets], settings),
            *([ONE_MODEL] if of_one_model(settings) else []),
        ],
    }
    for entry, run, file in zip(entries, runs, files):
        entry |= {"figures": run["figures"], "results": str(file)}
    job.say(results.table(record))
    out = results.publish(places, record, job.config.force)
    job.say(f"written to {out}")
    if job.write_page is not None:
        job.write_page(out.with_suffix(".html"), Evaluation(record))
    return record


def _verdict(why_not: list[str]) -> dict[str, Any]:
    """The entry of the record, every reason once."""
    return {"yes": not why_not, "why_not": list(dict.fromkeys(why_not))}
