"""The page beside results.json: figures, samples by class, nearest reference images, and precision and recall."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_shd.evaluation.evaluate import Evaluation, FeaturesAndImages
from dit_shd.evaluation.neighbours import exact_distances
from dit_shd.evaluation.results import teacher_figures, teacher_lines, verdict_line
from dit_shd.reports.figures.chart import chart_row
from dit_shd.reports.figures.images import class_sheet, points_chart, thumbnails
from dit_shd.reports.footer import page_footer
from dit_shd.reports.html import Link, header, legend, paragraph, picture, section, side_by_side, write_page
from dit_shd.reports.tables import number, table_html

CLASSES, OF_A_CLASS = 10, 8
"""Numbers of classes and of samples of each that are shown."""
NEIGHBOURS_OF, NEIGHBOURS = 8, 5
"""Number of samples whose neighbours are shown, and of neighbours."""
POINTS = 1000
"""Points of each set in the precision and recall picture."""
OUTSIDE = 20
"""Images outside of the other set that are shown."""


def write_evaluation_page(page: Path, evaluation: Evaluation) -> None:
    """Write the page of one evaluation, or of several files of samples."""
    record, samples, reference = evaluation.record, evaluation.samples, evaluation.reference
    if samples is None or reference is None:
        _write_summary(page, record)
        return
    body = [
        head(record, f"Evaluation of {Path(record['samples']['path']).name}"),
        figures_section(record),
        _by_class(samples),
        _nearest(samples, reference),
        _inside(samples, reference, evaluation.details),
        footer(record, page),
    ]
    write_page(page, f"dit_shd: {_title(record)}", body)


def _write_summary(page: Path, record: Mapping[str, Any]) -> None:
    """The page of several files of samples: means, spreads, and every file's figures."""
    names = list(record["figures"])
    rows = [[run["samples"]["path"], *(number(run["figures"][name]) for name in names)] for run in record["runs"]]
    title = f"Evaluation of {len(rows)} files of samples"
    table = table_html([("samples", ""), *((name, "") for name in names)], rows, tinted=-1, what="figures of each file")
    body = [head(record, title), figures_section(record), section("Each file", table), footer(record, page)]
    write_page(page, f"dit_shd: {title}", body)


def head(record: Mapping[str, Any], title: str) -> str:
    """The header: the first figure, what precision and recall say, and whether published figures may stand beside.

    Args:
        record: The content of results.json.
        title: The title of the page.
    """
    name, value = next(iter(record["figures"].items()))
    interval, spread = record.get("intervals", {}).get(name), record.get("spread", {}).get(name)
    beside = f" (95% interval {number(interval['low'])} to {number(interval['high'])})" if interval else ""
    beside = f" ± {number(spread)} over files" if spread is not None else beside
    about = record["samples"] if "samples" in record else record["runs"][0]["samples"]
    findings = [f"{name} is {number(value)}{beside}, over {about['n']:,} samples."]
    figures = record["figures"]
    if record.get("real") is not None:
        findings[0] += f" {record['real']['n']:,} reference images score {_real(record)} against the others."
    if {"precision", "recall"} <= figures.keys():
        findings.append(
            f"{figures['precision']:.0%} of the samples lie among the reference images (precision), and "
            f"{figures['recall']:.0%} of the reference lies among the samples (recall)."
        )
    tiles = {key: number(figures[key]) for key in [key for key in figures if not key.endswith(" std")][:6]}
    return header("evaluation", title, findings, tiles, paragraph(verdict_line(record), "quiet"))


def figures_section(record: Mapping[str, Any]) -> str:
    """The table of figures, with intervals or spreads if there are any, how real images score, and the notes."""
    intervals, spread = record.get("intervals", {}), record.get("spread", {})
    teacher = teacher_figures(record)
    headings = [("figure", ""), ("mean", "over files") if spread else ("value", "")]
    headings += [("teacher", "sampled alike")] if teacher else []
    headings += [("spread", "standard deviation")] if spread else []
    headings += [("95% interval", "bootstrap over images")] if intervals else []
    rows = []
    for name, value in record["figures"].items():
        row = [name, number(value)]
        row += [number(teacher[name]) if name in teacher else ""] if teacher else []
        row += [number(spread[name])] if spread else []
        ends = intervals.get(name)
        row += [f"{number(ends['low'])} to {number(ends['high'])}" if ends else ""] if intervals else []
        rows.append(row)
    notes = [paragraph(note, "quiet") for note in (*teacher_lines(record), *record["notes"])]
    last = -1
    if record.get("real") is not None:
        rows.append([f"{next(iter(record['figures']))} of real images", _real(record), *[""] * (len(headings) - 2)])
        last = len(rows) - 1
        words = f"Last line, for scale: {record['real']['n']:,} images of the reference against its others."
        notes.insert(0, paragraph(words, "quiet"))
    return section("Figures", table_html(headings, rows, tinted=-1, scale=last, what="figures"), *notes)


def _real(record: Mapping[str, Any]) -> str:
    """The first figure of real images."""
    return number(next(iter(record["real"]["figures"].values())))


def footer(record: Mapping[str, Any], page: Path) -> str:
    """Everything that is required to repeat the figures, with links to the files of the page's folder."""
    samples, reference, features = record.get("samples"), record["reference"], record["features"]
    about: dict[str, str | Link] = {"command": record["command"]}
    files = [Path(one["samples"]["path"]) for one in ([record] if samples is not None else record["runs"])]
    alike = len({file.name for file in files}) < len(files)
    for file in files:
        if file.is_file():
            about[f"file of {file if alike else file.name}"] = Link(str(file), file.absolute())
    if (results := page.with_suffix(".json")).is_file():
        about["results"] = Link(results.name, results)
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
    return page_footer(about, page)


def _title(record: Mapping[str, Any]) -> str:
    name, value = next(iter(record["figures"].items()))
    return f"{name} {number(value)}: {Path(record['samples']['path']).name}"


def _by_class(samples: FeaturesAndImages) -> str:
    assert samples.images is not None, "samples are images"
    labels = samples.images.labels
    if labels is None:
        first = np.arange(min(CLASSES * OF_A_CLASS, samples.images.shape[0]))
        shown = picture(thumbnails(samples.images.take(first), CLASSES), "samples", css="")
        return section("Samples", paragraph("The first of the file."), shown)
    classes = np.unique(labels)
    chosen = classes[_spread(len(classes), CLASSES)]
    sheet = class_sheet(samples.images, labels, chosen.tolist(), OF_A_CLASS)
    names = [str(label) for label in chosen]
    which = "" if len(chosen) == len(classes) else f", {len(chosen)} of {len(classes)} classes"
    words = f"The first of each class{which}: a class in each column."
    return section("Samples by class", paragraph(words), picture(sheet, "samples by class", css="", columns=names))


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
    columns = ["sample", *(str(i + 1) for i in range(count))]
    sheet_png = thumbnails(sheet.reshape(-1, *sheet.shape[2:]), count + 1)
    shown = picture(sheet_png, "samples and their nearest neighbours", css="", columns=columns)
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
    titles = ("precision: samples over the reference", "recall: reference over the samples")
    sides = ("sample", "reference image")
    plots = [
        points_chart(places[1 - k], places[k], inside[k][shown[k]], titles[k], [f"{sides[k]} {i}" for i in shown[k]])
        for k in range(2)
    ]
    words = (
        f"Up to {POINTS:,} images of each set on the two main directions of the reference's features; pale: the other "
        "set. Whether an image is inside the other set's balls is decided in all features, not in two."
    )
    marks = {"inside the other set": "s1", "outside": "s0", "the other set": "squiet"}
    parts = [paragraph(words), legend(marks, dots=True), chart_row(plots)]
    sets = (("samples outside the reference", samples), ("reference images no sample is near to", reference))
    sheets = []
    for (name, images_set), flags in zip(sets, inside):
        outside = np.flatnonzero(~flags)
        if images_set.images is not None and len(outside):
            selected = outside[_spread(len(outside), OUTSIDE)]
            caption = f"{len(selected)} of {len(outside):,} {name}"
            sheets.append(picture(thumbnails(images_set.images.take(selected), 5), name, caption, css=""))
    return section("Precision and recall", *parts, side_by_side(sheets) if sheets else "")


def _spread(n: int, count: int) -> np.ndarray:
    """Up to `count` numbers below n at equal distances."""
    count = min(n, count)
    return np.arange(count) * n // count
