"""The page beside results.json: figures, samples by class, nearest reference images, and precision and recall."""

import html
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_shd.data.pixels import grid
from dit_shd.evaluation.evaluate import Evaluation, FeaturesAndImages
from dit_shd.evaluation.neighbours import exact_distances
from dit_shd.evaluation.results import verdict_line
from dit_shd.reports.html import paragraph, picture, scatter, section, side_by_side, write_page
from dit_shd.reports.tables import facts, number, table_html

CLASSES, OF_A_CLASS = 10, 10
"""Numbers of classes and of samples of each that are shown."""
NEIGHBOURS_OF, NEIGHBOURS = 8, 5
"""Number of samples whose neighbours are shown, and of neighbours."""
POINTS = 1000
"""Points of each set in the precision and recall picture."""
OUTSIDE = 20
"""Images outside of the other set that are shown."""
THUMB = 96
"""Pixels of the longer side of an image on the page."""


def write_evaluation_page(page: Path, evaluation: Evaluation) -> None:
    """Write the page of one evaluation, or of several files of samples."""
    if evaluation.samples is None or evaluation.reference is None:
        write_summary_page(page, evaluation.record)
    else:
        write_result_page(page, evaluation.record, evaluation.samples, evaluation.reference, evaluation.details)


def write_result_page(
    page: Path,
    record: Mapping[str, Any],
    samples: FeaturesAndImages,
    reference: FeaturesAndImages,
    details: Mapping[str, Tensor],
) -> None:
    """Write the page of one evaluation.

    Args:
        page: The file.
        record: The content of results.json.
        samples: The samples.
        reference: What they were compared with.
        details: The metrics' results for single images, by name.
    """
    body = [
        f"<header><h1>{html.escape(_title(record))}</h1>",
        paragraph(verdict_line(record), "lead"),
        "</header>",
        figures_section(record),
        _by_class(samples),
        _nearest(samples, reference),
        _inside(samples, reference, details),
        footer(record),
    ]
    write_page(page, f"dit_shd: {_title(record)}", [part for part in body if part])


def write_summary_page(page: Path, record: Mapping[str, Any]) -> None:
    """Write the page of several files of samples: means, spreads, and every file's figures."""
    names = list(record["figures"])
    rows = [[run["samples"]["path"], *(number(run["figures"][name]) for name in names)] for run in record["runs"]]
    title = f"{len(rows)} files of samples"
    table = table_html([("samples", ""), *((name, "") for name in names)], rows, tinted=-1)
    body = [
        f"<header><h1>{title}</h1>",
        paragraph(verdict_line(record), "lead"),
        "</header>",
        figures_section(record),
        section("Each file", table),
        footer(record),
    ]
    write_page(page, f"dit_shd: {title}", body)


def figures_section(record: Mapping[str, Any]) -> str:
    """The table of figures, with intervals or spreads if there are any, and the notes."""
    intervals, spread = record.get("intervals", {}), record.get("spread", {})
    headings = [("figure", ""), ("mean", "over files") if spread else ("value", "")]
    headings += [("spread", "standard deviation")] if spread else []
    headings += [("95% interval", "bootstrap over images")] if intervals else []
    rows = []
    for name, value in record["figures"].items():
        row = [name, number(value)]
        row += [number(spread[name])] if spread else []
        ends = intervals.get(name)
        row += [f"{number(ends['low'])} to {number(ends['high'])}" if ends else ""] if intervals else []
        rows.append(row)
    notes = [paragraph(note, "quiet") for note in record["notes"]]
    return section("Figures", table_html(headings, rows, tinted=-1), *notes)


def footer(record: Mapping[str, Any]) -> str:
    """Everything that is required to repeat the figures."""
    samples, reference, features = record.get("samples"), record["reference"], record["features"]
    about = {"command": record["command"]}
    if samples is not None:
        about["samples"] = f"{samples['path']}, {samples['n']:,} images, sha256 {samples['sha256']}"
        about |= {f"sampler: {key}": str(value) for key, value in samples.get("sidecar", {}).items()}
    for run in record.get("runs", []):
        about[run["samples"]["path"]] = f"{run['samples']['n']:,} images, sha256 {run['samples']['sha256']}"
    about["reference"] = f"{reference['path']}, {reference['n']:,} images, sha256 {reference['sha256']}"
    about |= {f"statistics: {key}": str(value) for key, value in reference.get("statistics", {}).items()}
    about["features"] = f"{features['title']}, sha256 {features['sha256']}"
    for metric in record["metrics"]:
        about[f"metric {metric['name']}"] = ", ".join(f"{k} {v}" for k, v in metric.items() if k != "name") or "-"
    about["versions"] = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    about["machine"] = f"{record['platform']}, {record['device']}"
    return "<footer>" + facts(about) + "</footer>"


def thumbnails(images: np.ndarray, columns: int) -> bytes:
    """Images uint8 [n,y,x,c], row by row, as PNG; large ones are reduced, small ones enlarged."""
    from PIL import Image

    n, y, x, c = images.shape
    factor = THUMB / max(y, x)
    size = (max(1, round(x * factor)), max(1, round(y * factor)))
    filter = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
    small = [np.asarray(Image.fromarray(image[..., 0] if c == 1 else image).resize(size, filter)) for image in images]
    stream = io.BytesIO()
    grid(np.stack(small).reshape(n, size[1], size[0], c), columns).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _title(record: Mapping[str, Any]) -> str:
    name, value = next(iter(record["figures"].items()))
    return f"{name} {number(value)}: {Path(record['samples']['path']).name}"


def _by_class(samples: FeaturesAndImages) -> str:
    assert samples.images is not None, "samples are images"
    labels = samples.images.labels
    if labels is None:
        first = np.arange(min(CLASSES * OF_A_CLASS, samples.images.shape[0]))
        shown = picture(thumbnails(samples.images.take(first), OF_A_CLASS), "samples")
        return section("Samples", paragraph("The first of the file."), shown)
    classes = np.unique(labels)
    chosen = classes[_spread(len(classes), CLASSES)]
    figures = []
    for label in chosen:
        where = np.flatnonzero(labels == label)[:OF_A_CLASS]
        sheet = thumbnails(samples.images.take(where), OF_A_CLASS // 2)
        figures.append(picture(sheet, f"samples of class {label}", f"class {label}"))
    words = (
        f"The first of each class{'' if len(chosen) == len(classes) else f', {len(chosen)} of {len(classes)} classes'}."
    )
    return section("Samples by class", paragraph(words), side_by_side(figures))


def _nearest(samples: FeaturesAndImages, reference: FeaturesAndImages) -> str:
    """Some samples and the reference images nearest to them, so that copies are visible."""
    x, y = samples.features.pooled, reference.features.pooled
    if x is None or y is None or reference.images is None:
        return ""
    assert samples.images is not None
    chosen = _spread(len(x), NEIGHBOURS_OF)
    count = min(NEIGHBOURS, len(y))
    rows, closest = [], []
    for i in chosen:
        distances = torch.cat([exact_distances(rows_y, x[i]) for rows_y in y.split(4096)])
        values, where = distances.topk(count, largest=False)
        closest.append(float(values[0]) ** 0.5)
        rows.append(where.cpu().numpy())
    nearest = reference.images.take(np.concatenate(rows)).reshape(len(chosen), count, *reference.images.shape[1:])
    sheet = np.concatenate([samples.images.take(chosen)[:, None], nearest], 1)
    words = (
        f"Left: {len(chosen)} samples, spread over the file. Right: the {count} reference images nearest to each in "
        "the features of this network, nearest first. A sample that is a copy of its neighbour was memorised. "
        f"Distances to the first: {', '.join(number(distance) for distance in closest)}."
    )
    shown = picture(thumbnails(sheet.reshape(-1, *sheet.shape[2:]), count + 1), "samples and their nearest neighbours")
    return section("Nearest reference images", paragraph(words), shown)


def _inside(samples: FeaturesAndImages, reference: FeaturesAndImages, details: Mapping[str, Tensor]) -> str:
    """The precision and recall picture: both sets on the reference's two main directions, and images outside."""
    x, y = samples.features.pooled, reference.features.pooled
    if x is None or y is None or "sample_inside" not in details:
        return ""
    inside = [details[name].cpu().numpy() for name in ("sample_inside", "reference_inside")]
    statistics = reference.features.statistics
    axes = torch.linalg.eigh(statistics.covariance).eigenvectors[:, -2:].flip(1)
    shown = [_spread(len(rows), POINTS) for rows in (x, y)]
    places = [((rows[i].double() - statistics.mean) @ axes).cpu().numpy() for rows, i in zip((x, y), shown)]
    titles = ("precision: samples (dots) over the reference", "recall: reference (dots) over the samples")
    plots = [
        picture_svg(scatter(places[1 - k], places[k], inside[k][shown[k]], titles[k]), titles[k]) for k in range(2)
    ]
    words = (
        f"Up to {POINTS:,} images of each set on the two main directions of the reference's features. Dark dots lie "
        "inside the other set's balls, orange ones outside; whether they do is decided in all features, not in two."
    )
    parts = [paragraph(words), side_by_side(plots)]
    sets = (("samples outside the reference", samples), ("reference images no sample is near to", reference))
    sheets = []
    for (name, images_set), flags in zip(sets, inside):
        outside = np.flatnonzero(~flags)
        if images_set.images is not None and len(outside):
            selected = outside[_spread(len(outside), OUTSIDE)]
            caption = f"{len(selected)} of {len(outside):,} {name}"
            sheets.append(picture(thumbnails(images_set.images.take(selected), 5), name, caption))
    return section("Precision and recall", *parts, side_by_side(sheets) if sheets else "")


def picture_svg(svg: str, caption: str) -> str:
    """A figure from an SVG drawing."""
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{svg}</figure>"


def _spread(n: int, count: int) -> np.ndarray:
    """Up to `count` numbers below n at equal distances."""
    count = min(n, count)
    return np.arange(count) * n // count
