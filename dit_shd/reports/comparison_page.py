"""The page of several evaluations: cost of the models beside quality of their images."""

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
from dit_shd.tasks.diffusion import Diffusion

SHOWN, COLUMNS = 40, 8
"""Images of each model, and columns of their grid."""
SETTINGS = ("count", "steps", "guidance", "guidance_schedule", "labels", "rounding", "seed", "sampler")
"""Keys of the sampler in the table of how the images were made."""
COST = (
    "A multiply-add counts as two FLOPs; sampling with guidance takes two forward passes a step. Latency: median of "
    "several passes at batch 16 on one CPU thread of this machine."
)


def about_result(record: dict[str, Any]) -> dict[str, Any]:
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
    if sidecar.get("model_sha256") not in (None, hashing.sha256_of_tensors(model)):
        notes.append(f"{name}: no cost, because {sidecar['run']} has changed since the images were sampled")
        return None
    return cost(model, Diffusion(mask_ratio=None))


def comparison_notes(names: list[str], records: list[dict[str, Any]]) -> list[str]:
    """Differences in sampling, and whether the figures may be set beside published ones."""
    notes = []
    counts = [about_result(record)["n"] for record in records]
    if len(set(counts)) > 1:
        listed = ", ".join(f"{name} {count:,}" for name, count in zip(names, counts))
        notes.append(f"different numbers of samples ({listed}): fewer raise a Frechet distance")
    for key in ("steps", "guidance", "guidance_schedule", "labels", "rounding"):
        values = [str(about_result(record).get("sidecar", {}).get(key, "not recorded")) for record in records]
        if len(set(values)) > 1:
            notes.append(f"sampled with different {key}: " + ", ".join(f"{n} {v}" for n, v in zip(names, values)))
    verdicts = {results.verdict_line(record): name for name, record in zip(names, records)}
    notes += [line if len(verdicts) == 1 else f"{name}: {line}" for line, name in verdicts.items()]
    if not any("spread" in record for record in records):
        notes.append("one training seed each: another one can move FID more than the differences here")
    return notes


def how_sampled(names: list[str], records: list[dict[str, Any]]) -> str:
    """The table of the samplers' settings; empty if none are recorded."""
    sidecars = [about_result(record).get("sidecar", {}) for record in records]
    keys = [key for key in SETTINGS if any(key in sidecar for sidecar in sidecars)]
    if not keys:
        return ""
    rows = [[name, *(str(sidecar.get(key, "")) for key in keys)] for name, sidecar in zip(names, sidecars)]
    return section("How the images were made", table_html([("model", ""), *((key, "") for key in keys)], rows))


def same_images(names: list[str], records: list[dict[str, Any]]) -> str:
    """The first samples of each model whose file still exists."""
    grids = []
    for name, record in zip(names, records):
        entry = about_result(record)
        try:
            samples = open_images(entry["path"], "samples")
        except UserError:
            continue
        if [*samples.shape] == [entry["n"], *entry["shape"]]:
            images = samples.take(np.arange(min(SHOWN, entry["n"])))
            grids.append(picture(thumbnails(images, COLUMNS), f"samples of {name}", name))
    words = "The first of each file; where seed and labels are the same, so are class and noise of every place."
    return section("Images", paragraph(words), side_by_side(grids)) if grids else ""


def comparison_footer(files: list[str], records: list[dict[str, Any]]) -> str:
    """Commands, reference and features of the evaluations."""
    reference, features = records[0]["reference"], records[0]["features"]
    about = {"command": environment.command()}
    about |= {file: record["command"] for file, record in zip(files, records)}
    about["reference"] = f"{reference['path']}, sha256 {reference['sha256']}"
    about["features"] = f"{features['title']}, sha256 {features['sha256']}"
    return "<footer>" + facts(about) + "</footer>"
