"""`dit-shd sample`: many images into one npz or a folder of png, by as many processes as there are, resumable.

Every batch is a shard of its own in NAME.npz.parts; the same command again draws those that are missing, and the main
process merges them into arr_0 (uint8 [n,y,x,c]) and arr_1 (labels), the layout of the ADM evaluator; latents that are
kept on purpose (vae=null) are float32 [n,c,y,x] in arr_0, and have no grid. What is finished waits under `merged.*`
among the shards until all of it is there, so a kill at any moment loses nothing.
"""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import nn

from dit_shd.core import hashing
from dit_shd.core.config import checked, resolve
from dit_shd.core.distributed import agree, joined, launched, run_on_main
from dit_shd.core.errors import UserError
from dit_shd.core.files import atomic_file, atomic_folder, move
from dit_shd.core.lock import locked
from dit_shd.core.progress import progress_bar
from dit_shd.core.resumable import SETTINGS, Progress, check_same, claim, read_settings, share_of_missing
from dit_shd.data.datasets import DATASETS
from dit_shd.data.image_prompts import MODEL
from dit_shd.data.image_sets import CRC
from dit_shd.data.image_shards import (
    Shards,
    crc32_of,
    merge,
    open_shards,
    read_shard,
    shard_file,
    shard_files,
    write_shard,
)
from dit_shd.data.pixels import grid
from dit_shd.diffusion import sampler
from dit_shd.diffusion.denoiser import known_classes
from dit_shd.diffusion.sample_config import VELOCITY_SOLVERS, SampleConfig
from dit_shd.diffusion.sample_files import MERGED, lock_file, output_path, parts_of, places_of, refuse_existing
from dit_shd.diffusion.sampled_run import data_of, of_run
from dit_shd.diffusion.sampler import batches, draw, label_plan, load_decoder, prepared
from dit_shd.diffusion.teacher_sampling import about_teacher
from dit_shd.models import loading

if TYPE_CHECKING:
    from accelerate import PartialState

SHOWN = 100
"""Images on the grid beside the npz."""
FEWEST = 20
"""Images that can be scored; of fewer no command for that is proposed."""
SMALL_DIGITS = ("digits", "mnist", "asset:digits_teacher")
"""Data, and an asset, whose images the classifier of digits knows."""


def sample_to_file(config: SampleConfig, model: nn.Module | None = None) -> Path:
    """Sample `config.count` images into an npz or a folder, with a grid (png) and the settings (json) beside it.

    Args:
        config: What to sample, and how.
        model: What to sample from, in place of the one that `config.run` names.

    Returns:
        Where the images are.

    Raises:
        UserError: The npz is there already (and no force), or shards of other settings or of another model are.
    """
    config = of_run(checked(config, "sample").counted())
    config.check()
    out = output_path(config)
    state = joined()
    launched(state.num_processes)
    run_on_main(lambda: refuse_existing(out, config.force, config.run))
    network = (loading.load_conditional(config.run) if model is None else model).eval().to(state.device)  # type: ignore[arg-type]
    config = sampler.of_model(config, network)
    config.check()
    if config.label_list is not None:
        sampler.check_labels(config.label_list, network)
    decode = load_decoder(config, network)
    record = {**settings(config), "model_sha256": hashing.sha256_of_tensors(network), **about_teacher(config.run)}
    record |= {"vae_sha256": decode.digest, **({"vae_name": decode.name} if decode.name else {})}
    classes = known_classes(network)

    def images_of(indices: range, on_step: Callable[[float], None]) -> tuple[np.ndarray, np.ndarray]:
        labels = label_plan(config, classes, indices)
        return draw(network, config, indices, labels, decode, on_step), labels

    with prepared(network, config):
        make_file(state, config, record, out, images_of)
    return out


def make_file(
    state: "PartialState",
    config: SampleConfig,
    record: dict[str, Any],
    out: Path,
    images_of: Callable[[range, Callable[[float], None]], tuple[np.ndarray, np.ndarray]],
) -> None:
    """Draw what is missing of an npz, by all processes, and publish it.

    Args:
        state: The state of the process group.
        config: Its count, batch size and force.
        record: What makes the images what they are.
        out: The npz.
        images_of: Images uint8 [b,y,x,c] and labels [b] of some numbers; calls its second argument with shares of work.

    Raises:
        UserError: The npz is there already (and no force), shards of other settings are, or processes have read other
            weights.
    """
    folder = parts_of(out)
    if not agree(record.get(MODEL)):
        raise UserError(f"{config.run}: was written anew while the processes read it; the same command again")
    run_on_main(lambda: refuse_existing(out, config.force, config.run))
    with locked(lock_file(out), "dit-shd sample"):
        if run_on_main(lambda: _claim(folder, record, out, config.force)):
            _draw_missing(state, config, images_of, folder)
            run_on_main(lambda: _finish(folder, record, out, config.images))


def words(config: SampleConfig, out: Path) -> str:
    """What was made, and what to do next, in lines that can be pasted."""
    if config.vae is None:
        return f"done: {out}: latents as the model makes them (arr_0 float32 [n,c,y,x]), not images: vae=null"
    places = places_of(out)
    done = f"done: {out}{'' if out.suffix == '.npz' else '/'}, {places['.png'].name} beside it"
    return done if config.counted().images < FEWEST else f"{done}\n{_following(config, out)}"


def _following(config: SampleConfig, out: Path) -> str:
    """The command that scores samples: of models of small digits whole, of others with the word that is a user's."""
    place = f"./{out}" if str(out).partition(":")[0] in DATASETS.names() else str(out)
    line = f"next: dit-shd evaluate {shlex.quote(place)}"
    if data_of(config) in SMALL_DIGITS:
        return f"{line} reference=digits features=digits"
    return f"{line} reference=REFERENCE\n      (REFERENCE: real images, or their statistics: dit-shd statistics --help)"


def settings(config: SampleConfig) -> dict[str, Any]:
    """What makes the images what they are, but for the model itself.

    Args:
        config: Its solver is not auto.
    """
    unused = (
        "out",
        "force",
        "prompts",
        "pipeline",
        "call",
        "diffusion_steps" if config.solver in VELOCITY_SOLVERS else "shift",
    )
    return {k: v for k, v in resolve(config).items() if k not in unused}


def _claim(folder: Path, record: dict[str, Any], out: Path, force: bool) -> bool:
    """Make the folder of shards, or go on with the one of the same settings and model; False: all was finished."""
    refuse_existing(out, force, record["run"])  # again, under the lock
    if folder.is_dir() and [file.name for file in folder.iterdir()] == [SETTINGS]:  # by which nothing was drawn
        (folder / SETTINGS).unlink()
    there = read_settings(folder) or {}
    if there.get("model_sha256") == record["model_sha256"]:  # by whatever path or name
        record = record | {key: there[key] for key in ("run", "pipeline") if key in there}
    check_same(folder, record, "sample", beside=(MERGED,))
    if (folder / MERGED).exists():
        _publish(folder, out)
        return False
    claim(folder, record, "sample", "the samples")
    return True


def _draw_missing(
    state: "PartialState",
    config: SampleConfig,
    images_of: Callable[[range, Callable[[float], None]], tuple[np.ndarray, np.ndarray]],
    folder: Path,
) -> None:
    """Every process draws its share of the batches that have no sound shard yet."""

    def file_of(indices: range) -> Path:
        return shard_file(folder, indices.start)

    def finished() -> int:
        firsts = [int(file.stem) for file in shard_files(folder)]
        return sum(min(config.batch_size, config.images - first) for first in firsts)

    missing = share_of_missing(state, list(batches(config)), file_of, _check_shard)
    with Progress("sampling", config.images, finished, shown=state.is_main_process) as progress:
        for indices in missing:
            write_shard(file_of(indices), *images_of(indices, progress.step))
            progress.shard()
        state.wait_for_everyone()
        progress.shard()


def _check_shard(file: Path, indices: range) -> None:
    images = len(read_shard(file)[0])
    if images != len(indices):
        raise UserError(f"{file}: holds {images} images where {len(indices)} were wanted")


def _finish(folder: Path, record: dict[str, Any], out: Path, count: int) -> None:
    """Merge the shards beside them, then move everything to its place."""
    shards = open_shards(folder)
    if shards.shape[0] != count:
        raise UserError(f"{folder}: holds {shards.shape[0]} images where {count} were wanted; give the command again")
    if out.suffix == ".npz":
        merge(shards, folder / "merged.npz")
        record = {**record, CRC: crc32_of(folder / "merged.npz")}
    else:
        _write_images(shards, folder / f"{MERGED}_images")
    if shards.dtype == np.uint8:
        _draw_grid(shards, folder / "merged.png")
    else:  # latents have none: that of images which they take the place of goes
        places_of(out)[".png"].unlink(missing_ok=True)
    with atomic_file(folder / "merged.json") as stream:
        stream.write(json.dumps(record, indent=2).encode())
    with atomic_file(folder / MERGED):
        pass
    _publish(folder, out)


def _write_images(shards: Shards, folder: Path) -> None:
    """Write every image as <number>_<class>.png."""
    number, bar = 0, progress_bar(shards.shape[0], "image", "writing", delay=2)
    with atomic_folder(folder.absolute()) as part, bar:
        for images, labels in shards:
            for image, label in zip(images, labels):
                name = f"{number:05d}_{int(label)}.png"
                Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(part / name)
                number += 1
                bar.update()


def _draw_grid(shards: Shards, file: Path) -> None:
    shown: list[np.ndarray] = []
    for images, _ in shards:
        shown.append(images[: SHOWN - sum(map(len, shown))])
        if sum(map(len, shown)) >= SHOWN:
            break
    with atomic_file(file) as stream:
        grid(np.concatenate(shown)).save(stream, format="png")


def _publish(folder: Path, out: Path) -> None:
    """Move what is merged to its place and remove the shards; it may have been begun before."""
    for suffix, place in places_of(out).items():
        merged = folder / f"{MERGED}{suffix or '_images'}"
        if merged.exists():
            move(merged, place)
    for file in [*shard_files(folder), folder / MERGED, folder / SETTINGS]:
        file.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
