"""`dit-shd compare`: one page of several evaluations, what the models cost beside how good their images are."""

from typing import Any

import numpy as np

from dit_shd.core import environment, hashing
from dit_shd.core.errors import UserError
from dit_shd.data.open_images import open_images
from dit_shd.evaluation import results
from dit_shd.models import loading
from dit_shd.profiling.latency import Cost, cost
from dit_shd.reports.evaluation_page import thumbnails
from dit_shd.reports.html import paragraph, picture, section, side_by_side
from dit_shd.reports.tables import facts, table_html

SHOWN, COLUMNS = 40, 8
SETTINGS = ("count", "steps", "guidance", "guidance_schedule", "labels", "rounding", "seed", "sampler")
"""Of the sampler, in the table of how the images were made."""
COST = (
    "A multiply-add counts as two FLOPs; sampling with guidance takes two forward passes a step. Latency: median of "
    "several passes at batch 16 on one CPU thread of this machine."
)


def about_result(record: dict[str, Any]) -> dict[str, Any]:
    """The (first) samples behind a record."""
    return record["runs"][0]["samples"] if "runs" in record else record["samples"]


def cost_columns(name: str, record: dict[str, Any], notes: list[str]) -> Cost | None:
    """Of the model that the sampler says the images came from, if it is still the same."""
    sidecar = about_result(record).get("sidecar", {})
    if not sidecar.get("run"):
        notes.append(f"{name}: no cost, for nothing beside the samples says which model they came from")
        return None
    try:
        model: Any = loading.load(sidecar["run"]).eval()
    except (UserError, OSError) as error:
        notes.append(f"{name}: no cost ({error})")
        return None
    if sidecar.get("model_sha256") not in (None, hashing.sha256_of_tensors(model)):
        notes.append(f"{name}: no cost, for {sidecar['run']} is not the model any more that the images came from")
        return None
    return cost(model)


def comparison_notes(names: list[str], records: list[dict[str, Any]]) -> list[str]:
    found = []
    counts = [about_result(record)["n"] for record in records]
    if len(set(counts)) > 1:
        said = ", ".join(f"{name} {count:,}" for name, count in zip(names, counts))
        found.append(f"different numbers of samples ({said}): fewer raise a Frechet distance")
    for key in ("steps", "guidance", "guidance_schedule", "labels", "rounding"):
        values = [str(about_result(record).get("sidecar", {}).get(key, "not recorded")) for record in records]
        if len(set(values)) > 1:
            found.append(f"sampled with different {key}: " + ", ".join(f"{n} {v}" for n, v in zip(names, values)))
    verdicts = {results.verdict_line(record): name for name, record in zip(names, records)}
    found += [line if len(verdicts) == 1 else f"{name}: {line}" for line, name in verdicts.items()]
    if not any("spread" in record for record in records):
        found.append("one training seed each: another one can move FID more than the differences here")
    return found


def how_sampled(names: list[str], records: list[dict[str, Any]]) -> str:
    sidecars = [about_result(record).get("sidecar", {}) for record in records]
    keys = [key for key in SETTINGS if any(key in sidecar for sidecar in sidecars)]
    if not keys:
        return ""
    rows = [[name, *(str(sidecar.get(key, "")) for key in keys)] for name, sidecar in zip(names, sidecars)]
    return section("How the images were made", table_html([("model", ""), *((key, "") for key in keys)], rows))


def same_images(names: list[str], records: list[dict[str, Any]]) -> str:
    """The first samples of each, where the file is still there."""
    grids = []
    for name, record in zip(names, records):
        about = about_result(record)
        try:
            samples = open_images(about["path"], "samples")
        except UserError:
            continue
        if [*samples.shape] == [about["n"], *about["shape"]]:
            images = samples.take(np.arange(min(SHOWN, about["n"])))
            grids.append(picture(thumbnails(images, COLUMNS), f"samples of {name}", name))
    words = "The first of each file; where seed and labels are the same, so are class and noise of every place."
    return section("Images", paragraph(words), side_by_side(grids)) if grids else ""


def comparison_footer(files: list[str], records: list[dict[str, Any]]) -> str:
    reference, features = records[0]["reference"], records[0]["features"]
    about = {"command": environment.command()}
    about |= {file: record["command"] for file, record in zip(files, records)}
    about["reference"] = f"{reference['path']}, sha256 {reference['sha256']}"
    about["features"] = f"{features['title']}, sha256 {features['sha256']}"
    return "<footer>" + facts(about) + "</footer>"
