"""`dit-shd sample`: many images into one npz, by as many processes as there are, resumable.

Every batch is written whole as a part of its own; the same command again skips the parts that are there, and the
last one standing merges them into arr_0 (uint8 [n,y,x,c]) and arr_1 (labels), the layout of the ADM evaluator.
"""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dit_shd import models
from dit_shd.checkpoint import write_text
from dit_shd.config import resolve
from dit_shd.distiller import classes_of
from dit_shd.errors import UserError
from dit_shd.pictures import grid
from dit_shd.sampler import SampleConfig, batches, decoder, device_of, draw, label_plan

SHOWN = 100
"""Images on the grid beside the npz."""


def sample_to_file(config: SampleConfig) -> Path:
    """Sample `config.count` images into an npz, with a grid (png) and the settings (json) beside it.

    Raises:
        UserError: the npz is there already (and no force), or parts of other settings or of another model are.
    """
    from accelerate import PartialState
    from tqdm import tqdm

    config = models.of_run(config)
    config.check()
    out = output_path(config)
    for file in (out, out.with_suffix(".json"), out.with_suffix(".png")):
        if file.is_dir() or (file.exists() and not config.force):
            force = "" if file.is_dir() else " or say force=true"
            raise UserError(f"{file}: is there already; choose another out=FILE{force}")
    state = PartialState(cpu=not torch.accelerator.is_available())
    model = models.load(config.run).eval().to(state.device)  # type: ignore[arg-type]
    plan, decode = label_plan(config, classes_of(model)), decoder(config, device_of(model))
    told = {**settings(config), "model_sha256": models.digest(model)}
    parts = out.with_name(out.name + ".parts")
    with state.main_process_first():
        _claim(parts, told, state.is_main_process)
    mine = list(batches(config))[state.process_index :: state.num_processes]
    with tqdm(total=sum(map(len, mine)), unit="img", desc="sampling", disable=not state.is_main_process) as bar:
        for indices in mine:
            part = parts / f"{indices.start:08d}.npy"
            if not part.exists():
                _write(part, draw(model, config, plan, indices, decode))
            bar.update(len(indices))
    state.wait_for_everyone()
    if state.is_main_process:
        _merge([parts / f"{indices.start:08d}.npy" for indices in batches(config)], out, plan)
        write_text(out.with_suffix(".json"), json.dumps(told, indent=2))
        _remove(parts)
    state.wait_for_everyone()
    return out


def output_path(config: SampleConfig) -> Path:
    """Where the npz goes."""
    if config.out is not None:
        if config.out.name in ("", "..") or str(config.out).endswith("/"):
            raise UserError(f"out: wanted the name of an npz, found '{config.out}'")
        return config.out if config.out.suffix == ".npz" else config.out.with_name(config.out.name + ".npz")
    folder = Path(config.run) if Path(config.run).is_dir() else Path(".")
    return folder / f"samples_{config.count}_seed{config.seed}.npz"


def settings(config: SampleConfig) -> dict[str, Any]:
    """What makes the images what they are, but for the model itself."""
    return {k: v for k, v in resolve(config).items() if k not in ("out", "force")}


def _claim(parts: Path, told: dict[str, Any], write: bool) -> None:
    """Make the folder of parts, or go on with the one that holds the same settings and model."""
    file = parts / "settings.json"
    if parts.exists() and not file.is_file():
        raise UserError(f"{parts}: exists and was not made by sample; remove it or choose another out=FILE")
    try:
        there = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        if there is not None and not isinstance(there, dict):
            raise ValueError("settings.json holds no settings")
        if there is not None and there != told:
            changed = sorted(k for k in told if told[k] != there.get(k))
            raise UserError(
                f"{parts}: holds parts of other settings ({', '.join(changed)}); remove it or choose another out=FILE"
            )
        if write:
            parts.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(told))
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{parts}: cannot be used for the parts of the samples ({error})") from error


def _remove(parts: Path) -> None:
    """Remove what sampling made, and the folder if nothing else is in it."""
    for file in [*parts.glob("[0-9]*.npy"), parts / "settings.json"]:
        file.unlink()
    if not any(parts.iterdir()):
        parts.rmdir()


def _write(part: Path, images: np.ndarray) -> None:
    half = part.with_name(f".{part.name}.part")
    with open(half, "wb") as file:
        np.save(file, images)
    os.replace(half, part)


def _merge(files: list[Path], out: Path, labels: np.ndarray) -> None:
    """Stream the parts into one npz, never holding more than one of them, and draw the first images."""
    first = np.load(files[0], allow_pickle=False)
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), *first.shape[1:])}
    half, shown = out.with_name(f".{out.name}.part"), []
    with zipfile.ZipFile(half, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array_header_1_0(stream, header)  # type: ignore[arg-type]
            for file in files:
                images = np.load(file, allow_pickle=False)
                stream.write(images.tobytes())
                if sum(map(len, shown)) < SHOWN:
                    shown.append(images)
        with archive.open("arr_1.npy", "w") as stream:
            np.save(stream, labels)
    os.replace(half, out)
    grid(np.concatenate(shown)[:SHOWN]).save(out.with_suffix(".png"))
