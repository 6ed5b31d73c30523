"""The page of several evaluations: cost of the models beside quality of their images."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from dit_shd.core import environment, hashing
from dit_shd.core.errors import UserError
from dit_shd.core.pretrained import model_folder
from dit_shd.data.image_sets import ImageSet
from dit_shd.data.open_images import open_images
from dit_shd.data.sampled_weights import have_changed
from dit_shd.evaluation import results
from dit_shd.evaluation.comparability import of_one_model, sampled_differently
from dit_shd.evaluation.real_scale import shared_scale
from dit_shd.models import loading
from dit_shd.profiling.cost import Cost
from dit_shd.profiling.latency import cost
from dit_shd.reports.figures.chart import chart_row
from dit_shd.reports.figures.images import class_sheet, thumbnails
from dit_shd.reports.figures.quality import quality_charts
from dit_shd.reports.findings import compared, tiles
from dit_shd.reports.footer import page_footer
from dit_shd.reports.html import Link, header, paragraph, picture, section, side_by_side, write_page
from dit_shd.reports.tables import COSTS_EXPLAINED, Row, figures_table, number, shared_names, table_html
from dit_shd.tasks.diffusion import Diffusion

SHOWN, COLUMNS = 40, 8
"""Images of each model, and columns of their grid, where there are no classes."""
CLASSES, OF_A_CLASS = 10, 5
"""Classes, a column each, and images of each."""
SETTINGS = ("count", "steps", "solver", "guidance", "guidance_schedule", "labels", "rounding", "seed")
"""Keys of the sampler in the table of how the images were made."""


def about_result(record: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a record's (first) samples."""
    return record["runs"][0]["samples"] if "runs" in record else record["samples"]


def cost_columns(name: str, record: dict[str, Any], notes: list[str]) -> Cost | None:
    """The cost of the model that the sampler recorded, if it is unchanged; otherwise a note."""
    sidecar = about_result(record).get("sidecar", {})
    if not sidecar.get("run"):
        notes.append(f"{name}: no cost, because no file beside the samples records their model")
        return None
    try:
        model = loading.load(sidecar["run"]).eval()
    except (UserError, OSError) as error:
        notes.append(f"{name}: no cost ({error})")
        return None
    if loading.why_not_conditional(model) is not None:
        notes.append(f"{name}: no cost, which is measured of class-conditional models ({type(model).__name__})")
        return None
    if sidecar.get("model_sha256") not in (None, hashing.sha256_of_tensors(model)):
        notes.append(f"{name}: no cost, because {sidecar['run']} has changed since the images were sampled")
        return None
    return cost(model, Diffusion(mask_ratio=None))


def comparison_notes(names: list[str], records: list[dict[str, Any]]) -> list[str]:
    """Models that have changed since, differences in sampling, and whether figures may be set beside published ones."""
    notes = [line for pair in zip(names, records) for line in _of_earlier(*pair)]
    counts = [about_result(record)["n"] for record in records]
    if len(set(counts)) > 1:
        listed = ", ".join(f"{name} {count:,}" for name, count in zip(names, counts))
        notes.append(f"different numbers of samples ({listed}): fewer raise a Frechet distance")
    notes += sampled_differently(names, [about_result(record).get("sidecar", {}) for record in records])
    verdicts: dict[str, list[str]] = {}
    for name, record in zip(names, records):
        verdicts.setdefault(results.verdict_line(record), []).append(name)
    notes += [line if len(verdicts) == 1 else f"{', '.join(of)}: {line}" for line, of in verdicts.items()]
    single = [name for name, record in zip(names, records) if _of_one_training(record)]
    if single:
        which = f"one training seed{' each' if len(single) == len(names) else ''}"
        of = "" if len(single) == len(names) else f" of {', '.join(single)}"
        notes.append(f"{which}{of}: another one can move FID more than the differences here")
    return notes


def _of_earlier(name: str, record: Mapping[str, Any]) -> Iterator[str]:
    """A line where the images are of weights that their model has no longer."""
    sidecar = about_result(record).get("sidecar", {})
    folder = model_folder(Path(sidecar["run"])) if sidecar.get("run") else None
    if folder is not None and have_changed(sidecar, [folder]):
        yield f"{name}: the figures are of earlier weights of {sidecar['run']}; sample and evaluate it again"


def _of_one_training(record: Mapping[str, Any]) -> bool:
    """Whether a record is of one model, though perhaps of several draws of it."""
    settings = [run["samples"].get("sidecar", {}) for run in record.get("runs", [])]
    return "spread" not in record or of_one_model(settings)


def how_sampled(names: list[str], records: list[dict[str, Any]]) -> str:
    """The table of the samplers' settings; empty if none are recorded."""
    sidecars = [about_result(record).get("sidecar", {}) for record in records]
    keys = [key for key in SETTINGS if any(key in sidecar for sidecar in sidecars)]
    if not keys:
        return ""
    rows = [[name, *(str(sidecar.get(key, "")) for key in keys)] for name, sidecar in zip(names, sidecars)]
    table = table_html([("model", ""), *((key, "") for key in keys)], rows, what="how the images were made")
    return section("How the images were made", table)


def same_images(files: list[str], names: list[str], records: list[dict[str, Any]]) -> str:
    """The first samples of each model whose file still exists; the same classes in the same columns."""
    sets: dict[str, ImageSet] = {}
    others: list[str] = []
    absent: list[str] = []
    for name, file, record in zip(names, files, records):
        entry = about_result(record)
        opened = _opened(entry, Path(file).parent)
        same = next((samples for samples in opened if _is_of(samples, entry)), None)
        if same is not None:
            sets[name] = same
        elif opened:
            others.append(name)
        else:
            absent.append(f"{name} ({entry['path']})")
    missing = f" Other images are in the file of {', '.join(others)} now than were evaluated." if others else ""
    missing += f" No images are there any more of {', '.join(absent)}." if absent else ""
    if not sets:
        return section("Images", paragraph(missing.strip())) if missing else ""
    classes = shared_classes(list(sets.values()))
    grids = [_grid(name, samples, classes) for name, samples in sets.items()]
    words = "The first of each file; where seed and labels are the same, so are class and noise of every place."
    if classes:
        words = (
            "A class in each column, the same in all; where seed and labels are the same, so is the noise of a place."
        )
    return section("Images", paragraph(words + missing), side_by_side(grids))


def _opened(entry: Mapping[str, Any], folder: Path) -> list[ImageSet]:
    """What is at the place of a record's images, and beside the record, as from another working folder."""
    opened: list[ImageSet] = []
    for place in (entry["path"], str(folder / Path(entry["path"]).name)):
        with suppress(UserError):
            opened.append(open_images(place, "samples"))
    return opened


def _is_of(samples: ImageSet, entry: Mapping[str, Any]) -> bool:
    """Whether these are the images of a record."""
    return [*samples.shape] == [entry["n"], *entry["shape"]] and samples.sha256() == entry["sha256"]


def shared_classes(sets: Sequence[ImageSet]) -> list[int]:
    """Up to CLASSES classes that all sets have, at equal distances; none where one has no labels."""
    labels = [samples.labels for samples in sets]
    known = [set(np.unique(numbers).tolist()) for numbers in labels if numbers is not None]
    if len(known) < len(sets):
        return []
    shared = sorted(set.intersection(*known))
    count = min(len(shared), CLASSES)
    return [shared[i * len(shared) // count] for i in range(count)]


def _grid(name: str, samples: ImageSet, classes: Sequence[int]) -> str:
    """One model's images."""
    if not classes or samples.labels is None:
        first = np.arange(min(SHOWN, samples.shape[0]))
        return picture(thumbnails(samples.take(first), COLUMNS), f"samples of {name}", name, css="")
    sheet = class_sheet(samples, samples.labels, classes, OF_A_CLASS)
    return picture(sheet, f"samples of {name}", name, css="", columns=[str(label) for label in classes])


def write_comparison_page(
    page: Path, files: list[str], names: list[str], records: list[dict[str, Any]], rows: list[Row], notes: list[str]
) -> None:
    """Write the page of several evaluations, the teacher's first.

    Args:
        page: The file.
        files: Results files.
        names: The names of the models.
        records: Contents of the files.
        rows: The rows of the table of figures.
        notes: What a reader should know before the figures.
    """
    title = f"{len(rows)} models side by side"
    main = shared_names(rows)[:1]
    real = shared_scale(records)
    score = None if real is None or not main else real["figures"].get(main[0])
    body = [
        header(
            "comparison",
            title,
            compared(rows, main[0]) if main else ["The evaluations share no figure."],
            (tiles(rows, main[0]) if main else {}) | _real_tile(main, score),
            *(paragraph(note, "quiet") for note in notes),
        ),
        section(
            "Figures and cost",
            paragraph(
                "The first line is what the others are compared with."
                + (" Bold: the best of the others." if len(rows) > 2 else "")
                + _real_words(real)
            ),
            _figures(rows, real),
            chart_row(quality_charts(rows, main[0], score)) if main else "",
            paragraph(COSTS_EXPLAINED, "quiet") if any(row.cost is not None for row in rows) else "",
        ),
        how_sampled(names, records),
        same_images(files, names, records),
        comparison_footer(files, names, records, page),
    ]
    write_page(page, f"dit_shd: {title}", body)


def _figures(rows: Sequence[Row], real: Mapping[str, Any] | None) -> str:
    """The table of figures; its last line are real images, where all evaluations say the same of them."""
    headings, cells, best = figures_table(rows)
    if real is None:
        return table_html(headings, cells, best, what="figures and cost")
    known = [real["figures"].get(name) for name, _ in headings[1:]]
    cells.append(["real images", *("" if value is None else number(value) for value in known)])
    return table_html(headings, cells, best, scale=len(cells) - 1, what="figures and cost")


def _real_words(real: Mapping[str, Any] | None) -> str:
    return "" if real is None else f" Last line, for scale: {real['n']:,} images of the reference against its others."


def _real_tile(main: Sequence[str], score: float | None) -> dict[str, str]:
    return {} if score is None else {f"{main[0]}, real images": number(score)}


def comparison_footer(files: list[str], names: list[str], records: list[dict[str, Any]], page: Path) -> str:
    """Commands, files, reference and features of the evaluations."""
    reference, features = records[0]["reference"], records[0]["features"]
    about: dict[str, str | Link] = {"command": environment.command()}
    about |= {f"evaluation of {name}": record["command"] for name, record in zip(names, records)}
    about |= {f"results of {name}": Link(file, Path(file).absolute()) for name, file in zip(names, files)}
    about["reference"] = f"{reference['path']}, sha256 {reference['sha256']}"
    about["features"] = f"{features['title']}, sha256 {features['sha256']}"
    return page_footer(about, page)
