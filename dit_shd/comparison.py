"""`dit-shd compare`: one page of several evaluations, what the models cost beside how good their images are."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dit_shd import results
from dit_shd.config import checked, option
from dit_shd.errors import UserError
from dit_shd.image_sets import open_images
from dit_shd.inspection import Cost, cost
from dit_shd.places import Place
from dit_shd.report import (
    Row,
    facts,
    figures_table,
    paragraph,
    picture,
    plain_table,
    section,
    side_by_side,
    table_html,
    write_page,
)
from dit_shd.result_page import thumbnails

SHOWN, COLUMNS = 40, 8
SETTINGS = ("count", "steps", "guidance", "guidance_schedule", "labels", "rounding", "seed", "sampler")
"""Of the sampler, in the table of how the images were made."""
COST = (
    "A multiply-add counts as two FLOPs; sampling with guidance takes two forward passes a step. Latency: median of "
    "several passes at batch 16 on one CPU thread of this machine."
)


@dataclass(frozen=True)
class CompareConfig:
    """What is set side by side."""

    results: list[Place] = option(MISSING, "results files of evaluate, the teacher's first")
    names: list[str] | None = option(None, "what the page calls them; run or file names if left out")
    out: Path = option(Path("compare.html"), "the page")
    cost: bool = option(True, "measure parameters, operations and latency of the models the samples came from")
    force: bool = option(False, "overwrite a page that is there")


def compare(config: CompareConfig) -> list[Row]:
    """Write the page, print its table and return the rows, the teacher's (the first file's) first.

    Raises:
        UserError: not results files, figures of different networks, references or metrics, or a page at `out`.
    """
    config = checked(config, "compare")
    records = [_read(Path(text)) for text in config.results]
    if len(records) < 2:
        raise UserError(f"results: wanted at least two results files, the teacher's first, found {len(records)}")
    names = config.names or _names(config.results, records)
    if len(names) != len(records):
        raise UserError(f"names: wanted {len(records)}, one for each results file, found {len(names)}")
    _check_comparable(config.results, records)
    results.writable(config.out)
    if config.out.exists() and not config.force:
        raise UserError(f"{config.out}: is there already; choose another out=FILE or say force=true")
    notes: list[str] = []
    rows = [
        Row(name, _cost(name, record, notes) if config.cost else None, record["figures"], record.get("spread", {}))
        for name, record in zip(names, records)
    ]
    notes += _notes(names, records)
    headings, cells, best = figures_table(rows)
    print("\n".join([plain_table(headings, cells), *(f"note: {note}" for note in notes)]))
    title = f"{len(rows)} models side by side"
    body = [
        f"<header><h1>{title}</h1></header>",
        section(
            "Figures and cost",
            paragraph("The first line is the teacher. Bold: the best of the others."),
            table_html(headings, cells, best),
            *(paragraph(note, "quiet") for note in notes),
            paragraph(COST, "quiet"),
        ),
        _how(names, records),
        _images(names, records),
        _footer(config.results, records),
    ]
    write_page(config.out, f"dit_shd: {title}", [part for part in body if part])
    print(f"written to {config.out}")
    return rows


def _read(file: Path) -> dict[str, Any]:
    record = results.read_record(file)
    if record is None:
        found = "something else" if file.is_file() else "nothing"
        raise UserError(f"{file}: wanted a results file that dit-shd evaluate wrote, found {found}")
    return record


def _about(record: dict[str, Any]) -> dict[str, Any]:
    """The (first) samples behind a record."""
    return record["runs"][0]["samples"] if "runs" in record else record["samples"]


def _names(files: list[str], records: list[dict[str, Any]]) -> list[str]:
    """The run's folder where the sampler told it, else the samples' file; the results file where those repeat."""
    found = [Path(str(_about(r).get("sidecar", {}).get("run") or _about(r)["path"])).stem for r in records]
    return found if len(set(found)) == len(found) else list(files)


def _check_comparable(files: list[str], records: list[dict[str, Any]]) -> None:
    """Only figures of one network, one reference and the same options mean anything side by side."""
    first = records[0]
    for file, record in zip(files, records):
        for what in ("features", "reference"):
            if record[what]["sha256"] != first[what]["sha256"]:
                there = record[what].get("title") or record[what]["path"]
                here = first[what].get("title") or first[what]["path"]
                raise UserError(f"{file}: wanted the {what} of {files[0]} ({here}), found {there}; evaluate it again")
        options = {metric["name"]: metric for metric in first["metrics"]}
        changed = [m["name"] for m in record["metrics"] if m != options.get(m["name"], m)]
        if changed:
            raise UserError(f"{file}: {changed[0]} has other options than in {files[0]}; evaluate it again")


def _cost(name: str, record: dict[str, Any], notes: list[str]) -> Cost | None:
    """Of the model that the sampler says the images came from, if it is still the same."""
    from dit_shd import models

    sidecar = _about(record).get("sidecar", {})
    if not sidecar.get("run"):
        notes.append(f"{name}: no cost, for nothing beside the samples says which model they came from")
        return None
    try:
        model: Any = models.load(sidecar["run"]).eval()
    except (UserError, OSError) as error:
        notes.append(f"{name}: no cost ({error})")
        return None
    if sidecar.get("model_sha256") not in (None, models.digest(model)):
        notes.append(f"{name}: no cost, for {sidecar['run']} is not the model any more that the images came from")
        return None
    return cost(model)


def _notes(names: list[str], records: list[dict[str, Any]]) -> list[str]:
    found = []
    counts = [_about(record)["n"] for record in records]
    if len(set(counts)) > 1:
        said = ", ".join(f"{name} {count:,}" for name, count in zip(names, counts))
        found.append(f"different numbers of samples ({said}): fewer raise a Frechet distance")
    for key in ("steps", "guidance", "guidance_schedule", "labels", "rounding"):
        values = [str(_about(record).get("sidecar", {}).get(key, "not recorded")) for record in records]
        if len(set(values)) > 1:
            found.append(f"sampled with different {key}: " + ", ".join(f"{n} {v}" for n, v in zip(names, values)))
    verdicts = {results.verdict_line(record): name for name, record in zip(names, records)}
    found += [line if len(verdicts) == 1 else f"{name}: {line}" for line, name in verdicts.items()]
    if not any("spread" in record for record in records):
        found.append("one training seed each: another one can move FID more than the differences here")
    return found


def _how(names: list[str], records: list[dict[str, Any]]) -> str:
    sidecars = [_about(record).get("sidecar", {}) for record in records]
    keys = [key for key in SETTINGS if any(key in sidecar for sidecar in sidecars)]
    if not keys:
        return ""
    rows = [[name, *(str(sidecar.get(key, "")) for key in keys)] for name, sidecar in zip(names, sidecars)]
    return section("How the images were made", table_html([("model", ""), *((key, "") for key in keys)], rows))


def _images(names: list[str], records: list[dict[str, Any]]) -> str:
    """The first samples of each, where the file is still there."""
    grids = []
    for name, record in zip(names, records):
        about = _about(record)
        try:
            samples = open_images(about["path"], "samples")
        except UserError:
            continue
        if [*samples.shape] == [about["n"], *about["shape"]]:
            images = samples.take(np.arange(min(SHOWN, about["n"])))
            grids.append(picture(thumbnails(images, COLUMNS), f"samples of {name}", name))
    words = "The first of each file; where seed and labels are the same, so are class and noise of every place."
    return section("Images", paragraph(words), side_by_side(grids)) if grids else ""


def _footer(files: list[str], records: list[dict[str, Any]]) -> str:
    reference, features = records[0]["reference"], records[0]["features"]
    about = {"command": results.command()}
    about |= {file: record["command"] for file, record in zip(files, records)}
    about["reference"] = f"{reference['path']}, sha256 {reference['sha256']}"
    about["features"] = f"{features['title']}, sha256 {features['sha256']}"
    return "<footer>" + facts(about) + "</footer>"
