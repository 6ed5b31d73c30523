"""The record of an evaluation: what was measured on what, as a table and as results.json."""

import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dit_shd import __version__
from dit_shd.config import Plugin, resolve
from dit_shd.errors import UserError
from dit_shd.features import FeatureNetwork
from dit_shd.image_sets import ImageSet
from dit_shd.metrics import FeatureSet
from dit_shd.reference import Reference

COMPARABLE = 50_000
"""Samples behind a published FID."""


def describe(
    samples: ImageSet, reference: Reference, network: FeatureNetwork, features: str, metrics: list[Plugin]
) -> dict[str, Any]:
    """What the figures are of: all of the record that is known before the network runs.

    features: the feature network's name in the command.
    """
    n, *shape = samples.shape
    about_samples = {"path": samples.name, "sha256": samples.sha256(), "n": n, "shape": shape}
    if samples.labels is not None:
        counts = np.unique(samples.labels, return_counts=True)[1]
        about_samples["labels"] = {
            "classes": len(counts),
            "fewest": int(counts.min()),
            "most": int(counts.max()),
        }
    sidecar = _sidecar(samples)
    if sidecar is not None:
        about_samples["sidecar"] = sidecar
    record = {
        "samples": about_samples,
        "reference": {"path": reference.name, **reference.describe()},
        "features": {
            "name": features,
            "title": network.title,
            "sha256": network.sha256,
            "is_fid": network.is_fid,
        },
        "metrics": [resolve(plugin) for plugin in metrics],
        "versions": {"dit_shd": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "command": shlex.join(sys.argv),
    }
    return json.loads(json.dumps(record))


def notes_on(samples: ImageSet, sample_set: FeatureSet, reference_set: FeatureSet) -> list[str]:
    """What a reader must know before comparing these figures with others."""
    notes = []
    if sample_set.is_fid and sample_set.n != COMPARABLE:
        notes.append(f"{sample_set.n:,} samples: published FID is of {COMPARABLE:,}, and fewer samples raise it")
    if not sample_set.is_fid:
        notes.append(f"features {sample_set.title}: not FID, comparable only with figures of the same network")
    features = len(sample_set.mean)
    for name, count in (("samples", sample_set.n), ("reference", reference_set.n)):
        if 0 < count <= features:
            notes.append(f"{count} {name} for {features} features: a singular covariance, a strongly biased distance")
    labels = samples.labels
    if labels is not None and len(labels) > 5000 and (np.diff(labels) >= 0).all() and labels[0] != labels[-1]:
        notes.append("samples are sorted by class: the Inception Score of chunks in file order means nothing")
    if samples.lossy:
        notes.append("samples are JPEG files: compression moves every figure")
    return notes


def table(record: dict[str, Any]) -> str:
    """The figures as aligned plain text, with what they were measured on and the notes."""
    samples, reference, figures = record["samples"], record["reference"], record["figures"]
    width = max([len("figure"), *map(len, figures)])
    behind = f"{reference['n']:,} images" if reference["n"] else "statistics"
    lines = [
        f"{samples['path']} ({samples['n']:,} images) against {reference['path']} ({behind}), "
        f"features {record['features']['title']}",
        f"{'figure':<{width}}  {'value':>12}",
        *(f"{name:<{width}}  {value:>12.4f}" for name, value in figures.items()),
        *(f"note: {note}" for note in record["notes"]),
    ]
    return "\n".join(lines)


def guard(out: Path, record: dict[str, Any], force: bool, before: bool) -> None:
    """Refuse to lose another result: before the run if its inputs differ, after it if its figures do."""
    if out.is_dir():
        raise UserError(f"out={out}: wanted a file, found a folder; add a file name")
    if before:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"out={out}: wanted a path in a folder, found {error.strerror}") from error
        if not os.access(out.parent, os.W_OK):
            raise UserError(f"out={out}: this folder cannot be written to; choose out=OTHER.json")
    if force or not out.exists():
        return
    try:
        old = json.loads(out.read_text(encoding="utf-8"))
        same = _identity(old) == _identity(record)
        if same and not before:
            figures, old_figures = record["figures"], old["figures"]
            same = figures.keys() == old_figures.keys() and all(
                np.isclose(figures[k], old_figures[k], rtol=1e-6, atol=1e-9) for k in figures
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        same = False
    if not same:
        raise UserError(f"{out}: holds another result; choose out=OTHER.json, or overwrite it with force=true")


def write(out: Path, record: dict[str, Any]) -> None:
    """Write whole or not at all."""
    part = out.with_name(out.name + ".part")
    part.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(out)


def _identity(record: dict[str, Any]) -> tuple[Any, ...]:
    hashes = (record[key]["sha256"] for key in ("samples", "reference", "features"))
    return (*hashes, record["metrics"])


def _sidecar(samples: ImageSet) -> dict[str, Any] | None:
    """What the sampler wrote beside the samples (same stem, .json): rounding, label policy, seeds."""
    if samples.path is None or not samples.path.is_file():
        return None
    try:
        content = json.loads(samples.path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
