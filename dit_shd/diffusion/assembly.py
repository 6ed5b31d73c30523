"""A whole pipeline of diffusers with a student in the place of its transformer."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from dit_shd.core.errors import UserError
from dit_shd.core.files import write_text
from dit_shd.core.json_files import read_object
from dit_shd.core.places import Asset, HubName, find
from dit_shd.core.pretrained import COPY, asset, model_folder, of_hub
from dit_shd.data.autoencoder import read_autoencoder
from dit_shd.data.model_origin import of_source
from dit_shd.data.pipeline_record import (
    INDEX,
    VARIANT,
    WEIGHTS,
    PipelineRecord,
    only_variant,
    read_index,
    read_record,
    text_digests,
    text_parts,
    unopened,
    weight_files,
)
from dit_shd.diffusion.pipelines import (
    folder_of,
    lacking,
    name_of,
    open_pipeline,
    read_scheduler,
    reads_text,
    record_of,
)
from dit_shd.models import cards, loading

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

CARD = "README.md"
_log = logging.getLogger("dit_shd")


def assemble(run: str, place: str | None, precision: str = "no") -> tuple["DiffusionPipeline", PipelineRecord]:
    """A whole pipeline with a run's student in it, or the pipeline that a name itself is of.

    Args:
        run: A run, a student's folder, a pipeline's folder or hub:OWNER/NAME.
        place: The pipeline of a run's student; None for the one that it was encoded by.
        precision: Bf16 holds and runs it in bfloat16.

    Returns:
        The pipeline, and the record of it: name, class and scheduler are those of the folder that is used.

    Raises:
        UserError: Nothing says which pipeline, or it has other text encoders than the student has learned.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    student = student_folder(run)
    record = None if student is None else read_record(student)
    if student is None or record is None:
        if place is None and not run.startswith(("hub:", "asset:")) and not (Path(run) / INDEX).is_file():
            raise UserError(
                f"{run}: does not record a pipeline; wanted a text-to-image run, a pipeline, or pipeline=... (of a "
                "class-conditional student of diffusers a DiTPipeline, as hub:facebook/DiT-XL-2-256)"
            )
        folder = folder_of(run if place is None else place)
        record = record_of(place or run, folder)
        if place is not None and reads_text(folder):
            _log.warning(
                "%s: does not record how it was trained (no pipeline.json); prompts have the pipeline's own number of "
                "tokens, images its own size; dit-shd sample takes call.max_sequence_length=..., call.height=...",
                run,
            )
        components = {} if place is None else {"transformer": _student(run, dtype)}
        return open_pipeline(folder, dtype, **components), record
    if place is None and student.name == "transformer" and (run.startswith("hub:") or (Path(run) / INDEX).is_file()):
        place = run  # a pipeline with its student in it
    folder = folder_of(place or record.pipeline)
    digests = text_digests(folder)
    if record.text_sha256 not in digests:
        raise UserError(
            f"pipeline: {folder} has other text encoders (sha256 {digests[0][:12]}...) than the student has learned "
            f"({record.text_sha256[:12]}..., of '{record.pipeline}')"
        )
    used = replace(
        record,
        pipeline=record.pipeline if place is None else name_of(place, folder),
        pipeline_class=str(read_index(folder)["_class_name"]),
        scheduler=read_scheduler(folder),
    )
    components = {"transformer": _student(student, dtype), **_kept_autoencoder(student, folder, dtype)}
    return open_pipeline(folder, dtype, **components), used


def write_pipeline(pipeline: "DiffusionPipeline", record: PipelineRecord, run: str, folder: Path) -> None:
    """Write a whole pipeline, with the card and the record of its student.

    Text encoders and tokenizers are the files that the pipeline was opened from: their precision and hash stay.

    Args:
        pipeline: As `assemble` gives it.
        record: Likewise.
        run: What it was assembled of.
        folder: To be written.

    Raises:
        UserError: The student is of no class of diffusers.
    """
    student: nn.Module = pipeline.transformer  # type: ignore[attr-defined]
    if not type(student).__module__.startswith("diffusers."):
        raise UserError(
            f"{run}: holds {type(student).__name__}, which is no class of diffusers, so that no pipeline with it could "
            "be opened; dit_shd.load and dit_shd.sample take it as it is"
        )
    pipeline.save_pretrained(folder)
    for part in text_parts(Path(pipeline.name_or_path)):
        if not part.name.startswith("text_encoder") or weight_files(part):
            shutil.rmtree(folder / part.name, ignore_errors=True)
            shutil.copytree(part, folder / part.name, ignore=unopened)
            _name_plainly(folder / part.name)
    place = student_folder(run)
    if place is not None and (place / CARD).is_file():
        card = (place / CARD).read_text(encoding="utf-8", errors="backslashreplace")
        write_text(folder / CARD, cards.of_pipeline(card, told_none(folder)))
    if place is not None and read_record(place) is not None:
        record.write(folder / "transformer")


def told_none(folder: Path) -> str:
    """What from_pretrained is to be told of the components that a pipeline's folder is without, as arguments."""
    return "".join(f", {name}=None" for name in lacking(folder))


def _name_plainly(folder: Path) -> None:
    """Take the name of a variant, as fp16, out of the names of the weights that a folder has alone."""
    if only_variant(folder) is None:
        return
    for file in weight_files(folder):
        file.rename(folder / VARIANT.sub("", file.name))
    for file in folder.glob(f"*{WEIGHTS}.index.*.json"):
        content = read_object(file) or {}
        content["weight_map"] = {key: VARIANT.sub("", name) for key, name in content.get("weight_map", {}).items()}
        write_text(folder / f"{file.name.partition(WEIGHTS)[0]}{WEIGHTS}.index.json", json.dumps(content))
        file.unlink()


def _kept_autoencoder(student: Path, pipeline: Path, dtype: torch.dtype) -> dict[str, nn.Module]:
    """The autoencoder of the latents that a student has learned, where the pipeline has one of others."""
    origin = of_source(str(student), 0)
    if origin is None or not origin.vae or not (pipeline / COPY).is_dir():
        return {}
    difference = origin.differs(read_autoencoder(str(pipeline / COPY)), exact=False)
    if difference is None:
        return {}
    _log.warning(
        "pipeline: the autoencoder of %s %s; decoding with the one of the latents that the student has learned, %s",
        pipeline,
        difference,
        origin.words,
    )
    return {"vae": nn.Module.to(origin.find().vae, dtype)}


def student_folder(run: str) -> Path | None:
    """The folder of a run's student, of a pipeline's transformer, of an asset, or of what a name on the hub is of."""
    place = find(run, "model")
    if isinstance(place, Asset):
        return asset(place.name)
    return of_hub(place) if isinstance(place, HubName) else model_folder(place)


def _student(place: str | Path, dtype: torch.dtype) -> nn.Module:
    return loading.load(place, "bf16" if dtype == torch.bfloat16 else "no")
