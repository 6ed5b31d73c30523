"""What a study knows by a name or a path alone, as a cell found it there: hashes, and a glance at data."""

import json
import os
import shlex
from pathlib import Path

from dit_shd.core.hashing import sha256
from dit_shd.core.json_files import read_object
from dit_shd.core.run_files import BEGUN_FROM
from dit_shd.study.design import Cell, Study
from dit_shd.study.results import DRAWN, NETWORK, REFERENCE, WEIGHTS
from dit_shd.study.settings import canonical_sha256

DIGITS = 12
START = "the start"
"""In the place of a teacher's name: of `from`."""


def of_evaluators(study: Study, folder: Path) -> dict[str, str]:
    """The images of each evaluator's reference and the weights of its feature network, by its record in a cell."""
    hashes: dict[str, str] = {}
    for name in (name for name, evaluator in study.evaluators.items() if not evaluator.program):
        record = json.loads((folder / f"{name}.json").read_text("utf-8"))
        reference = record["reference"]
        hashes[f"{REFERENCE} {name}"] = reference.get("statistics", {}).get("source_sha256", reference["sha256"])
        hashes[f"{NETWORK} {name}"] = record.get("features", {}).get("sha256", "")
    return {key: digest[:DIGITS] for key, digest in hashes.items() if digest}


def of_weights(cell: Cell, samples: Path, inputs: Path) -> dict[str, str]:
    """The weights of each teacher and those that a student began with (from), or of the model that is scored as it is.

    Args:
        cell: The cell.
        samples: Its file of samples.
        inputs: What its run learned from (inputs.json).
    """
    known, begun = (
        read_object(file) or {}
        for file in (samples.with_suffix(".json") if cell.model else inputs, inputs.with_name(BEGUN_FROM))
    )
    of_run = {**known.get("teachers", {}), START: begun.get("weights")}
    hashes = {f"model {cell.variant}": known.get("model_sha256")} if cell.model else of_run
    return {f"{WEIGHTS} {name}": digest[:DIGITS] for name, digest in hashes.items() if digest}


def of_sampling(study: Study, samples: Path) -> dict[str, str]:
    """The prompts that a cell's samples were drawn by, and the autoencoder and text encoders that the study names.

    Args:
        study: The study.
        samples: The cell's file of samples.
    """
    record, named = read_object(samples.with_suffix(".json")) or {}, study.sampling
    hashes = {
        "sets of prompts": canonical_sha256(record["prompts"]) if record.get("prompts") else None,
        "autoencoders": record.get("vae_sha256") if {"vae", "pipeline"} & named.keys() else None,
        "text encoders": record.get("text_sha256") if "pipeline" in named else None,
    }
    return {f"{DRAWN} {name}": digest[:DIGITS] for name, digest in hashes.items() if digest}


def of_data(inputs: Path) -> list[float]:
    """The number of samples that a run learned from, then its glance at them; nothing where it kept none.

    Args:
        inputs: The run's inputs.json.
    """
    known = read_object(inputs) or {}
    numbers = [known.get("samples"), *known.get("glance", [])]
    return [float(f"{x:.6g}") for x in numbers] if "samples" in known and len(numbers) > 1 else []


def of_program(program: str) -> str:
    """The files that a program's words name, also behind `=`, less an interpreter before them; empty for none."""
    first, *words = shlex.split(program)
    parts = [part for word in words for part in (word, word.partition("=")[2])]
    files = [part for part in parts if _is_readable(part)] or [part for part in [first] if _is_readable(part)]
    return canonical_sha256([sha256(Path(file)) for file in files])[:DIGITS] if files else ""


def _is_readable(part: str) -> bool:
    return os.path.isfile(part) and os.access(part, os.R_OK)
