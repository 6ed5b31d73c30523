"""Figures of images from Python: `evaluate(samples, reference=...)`, which a notebook shows as a table."""

import html
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from torch import Tensor

from dit_shd.core.config import make
from dit_shd.core.devices import find_device
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.data.image_sets import HasImages, pixels_of
from dit_shd.evaluation import results
from dit_shd.evaluation.evaluate import EvaluateConfig
from dit_shd.evaluation.evaluate import evaluate as evaluate_files
from dit_shd.evaluation.feature_set import FeatureSet
from dit_shd.evaluation.features import build_network
from dit_shd.evaluation.reference import Reference, open_reference
from dit_shd.evaluation.scoring import score


@dataclass(frozen=True)
class Figures(Mapping[str, float]):
    """Figures by name, as FD(digits): a mapping, and what they are of."""

    values_by_name: Mapping[str, float]
    about: Mapping[str, Any] = field(default_factory=dict)
    """Samples, reference, features; of files all that results.json has."""

    def __getitem__(self, name: str) -> float:
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)

    def __str__(self) -> str:
        width = max(map(len, self.values_by_name), default=0)
        return "\n".join(f"{name:<{width}}  {results.shown(value):>12}" for name, value in self.items())

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{results.shown(value)}</td></tr>" for name, value in self.items()
        )
        words = "; ".join(f"{key}: {value}" for key, value in self.about.items() if isinstance(value, str))
        return f"<table><caption>{html.escape(words)}</caption>{cells}</table>"


def evaluate(
    samples: np.ndarray | Tensor | HasImages | str | Path | Iterable[str | Path],
    reference: np.ndarray | Tensor | HasImages | FeatureSet | Reference | str | Path,
    features: str | Mapping[str, Any] = "inception",
    **options: Any,
) -> Figures:
    """Compare samples with real images.

    Files are evaluated as `dit-shd evaluate` does, which writes results.json and reads it again; arrays are scored in
    memory, and nothing is written.

    Args:
        samples: Images uint8 [n,y,x,c], what `dit_shd.sample` returned, or a file, folder or dataset of images, or
            several.
        reference: Images of the same kind, whatever `dit-shd evaluate` takes, or, for arrays, what `score` takes.
        features: The feature network, a plug-in's name or {name: ..., key: value}.
        options: Of files any key of EvaluateConfig (seeds, resamples, force, ...); of arrays metrics and batch_size.

    Returns:
        The figures by name.

    Raises:
        UserError: Images that cannot be compared.
    """
    images, truth = pixels_of(samples), pixels_of(reference)
    if not isinstance(images, (np.ndarray, Tensor)):
        places = [_place(place) for place in (images if _several(images) else [images])]
        keys = {
            "samples": places,
            "reference": _place(truth, "reference"),
            "features": features,
            "page": False,
            **options,
        }
        record = evaluate_files(make(EvaluateConfig, keys, "evaluate"), say=lambda line: None)
        return Figures(record["figures"], {"verdict": results.verdict_line(record), **record})
    other = next((key for key in options if key not in ("metrics", "batch_size")), None)
    if other is not None:
        raise UserError(
            f"{other}: is of files, and arrays are scored by metrics and batch_size alone; numpy.savez(FILE, images), "
            "and evaluate that"
        )
    network = build_network(Plugin.from_value(features, "features")).to(find_device("auto"))
    if not isinstance(truth, (np.ndarray, Tensor, FeatureSet, Reference)):
        truth = open_reference(_place(truth, "reference"), "reference")
    figures = score(images, truth, network, **options)
    known = f"{len(truth)} images" if isinstance(truth, (np.ndarray, Tensor)) else str(reference)[:80]
    return Figures(figures, {"features": network.title, "reference": known, "samples": f"{len(images)} images"})


def _several(places: object) -> TypeGuard[Iterable[object]]:
    return isinstance(places, Iterable) and not isinstance(places, str)


def _place(value: object, name: str = "samples") -> str:
    """The name of a file, folder or dataset.

    Raises:
        UserError: It is something else, such as one image of a list.
    """
    if isinstance(value, (str, Path)):
        return str(value)
    if name == "reference" and isinstance(value, (np.ndarray, Tensor)):
        raise UserError("reference: wanted a file like the samples', found an array; numpy.savez(FILE, images)")
    raise UserError(
        f"{name}: wanted an array uint8 [n,y,x,c], or names of files, found {type(value).__name__}; numpy.stack makes "
        "one array of a list of images"
    )
