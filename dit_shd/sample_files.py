"""`dit-shd sample`: many images into one npz, by as many processes as there are, resumable.

Every batch is written whole as a part of its own; the same command again skips the parts that are there, and the
last one standing merges them into arr_0 (uint8 [n,y,x,c]) and arr_1 (labels), the layout of the ADM evaluator.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from dit_shd import models
from dit_shd.checkpoint import write_text
from dit_shd.config import resolve
from dit_shd.errors import UserError
from dit_shd.pictures import grid
from dit_shd.sampler import SampleConfig, batches, classes_of, decoder, device_of, draw, label_plan

SHOWN = 100
"""Images on the grid beside the npz."""


def sample_to_file(config: SampleConfig) -> Path:
    """Sample `config.count` images into an npz, with a grid (png) and the settings (json) beside it.

    Raises:
        UserError: the npz is there already (and no force), or parts of another configuration are.
    """
    from accelerate import PartialState
    from tqdm import tqdm

    config.check()
    out = output_path(config)
    if out.exists() and not config.force:
        raise UserError(f"{out}: is there already; choose another out=FILE or say force=true")
    state = PartialState()
    model = models.load(config.run).eval().to(state.device)  # type: ignore[arg-type]
    plan, decode = label_plan(config, classes_of(model)), decoder(config, device_of(model))
    parts = out.with_name(out.name + ".parts")
    with state.main_process_first():
        _claim(parts, config)
    mine = list(batches(config))[state.process_index :: state.num_processes]
    with tqdm(total=sum(map(len, mine)), unit="img", desc="sampling", disable=not state.is_main_process) as bar:
        for indices in mine:
            part = parts / f"{indices.start:08d}.npy"
            if not part.exists():
                _write(part, draw(model, config, plan, indices, decode))
            bar.update(len(indices))
    state.wait_for_everyone()
    if state.is_main_process:
        _merge(parts, out, plan, config)
    state.wait_for_everyone()
    return out


def output_path(config: SampleConfig) -> Path:
    """Where the npz goes."""
    if config.out is not None:
        return config.out if config.out.suffix == ".npz" else config.out.with_name(config.out.name + ".npz")
    folder = Path(config.run) if Path(config.run).is_dir() else Path(".")
    return folder / f"samples_{config.count}_seed{config.seed}.npz"


def settings(config: SampleConfig) -> dict[str, Any]:
    """What makes the images what they are."""
    return {k: v for k, v in resolve(config).items() if k not in ("out", "force")}


def _claim(parts: Path, config: SampleConfig) -> None:
    """Make the folder of parts, or go on with the one that holds the same settings."""
    file = parts / "settings.json"
    if file.exists() and json.loads(file.read_text()) != settings(config):
        raise UserError(f"{parts}: holds parts of other settings; remove it or choose another out=FILE")
    parts.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(settings(config)))


def _write(part: Path, images: np.ndarray) -> None:
    half = part.with_name(f".{part.name}.part")
    with open(half, "wb") as file:
        np.save(file, images)
    os.replace(half, part)


def _merge(parts: Path, out: Path, plan: np.ndarray, config: SampleConfig) -> None:
    files = [parts / f"{indices.start:08d}.npy" for indices in batches(config)]
    images = np.concatenate([np.load(file, allow_pickle=False) for file in files])
    half = out.with_name(f".{out.name}.part")
    with open(half, "wb") as file:
        np.savez(file, arr_0=images, arr_1=plan)
    os.replace(half, out)
    write_text(out.with_suffix(".json"), json.dumps(settings(config), indent=2))
    grid(images[:SHOWN]).save(out.with_suffix(".png"))
    shutil.rmtree(parts)
