"""`dit-shd encode`: images into latent shards, by as many processes as there are, resumable.

Every `shard_size` images are a shard of their own; the same command again verifies the checksums of those that are
there, makes the missing ones, and writes latents.json, without which a set is not complete.
"""

import json
import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from dit_shd.core.config import option, resolve
from dit_shd.core.distributed import joined, launched, on_main
from dit_shd.core.errors import UserError
from dit_shd.core.files import replacing_file
from dit_shd.core.lock import locked
from dit_shd.core.places import Place
from dit_shd.core.resumable import Progress, claim, share_of_missing
from dit_shd.data.autoencoder import Encoder
from dit_shd.data.latent_shards import (
    DTYPES,
    FORMAT,
    LatentSet,
    ShardEntry,
    damaged,
    read_header,
    read_index,
    shard_file,
    shard_files,
    verify_shard,
    write_index,
    write_shard,
)
from dit_shd.data.preprocessing import pixels
from dit_shd.data.sources.base import BrokenImage, ImageSource
from dit_shd.data.sources.detect import open_source

SKIPPED = "skipped.jsonl"
ELSEWHERE = ("images", "out", "workers")
"""Keys that do not make the latents what they are."""

_log = logging.getLogger("dit_shd")


@dataclass(frozen=True)
class EncodeConfig:
    """What to encode and how."""

    images: Place = option(
        MISSING,
        "folder of class folders, npz (arr_0 uint8 [n,y,x,c], arr_1 labels), Parquet files, "
        "or a Hugging Face dataset (a folder of save_to_disk, or hub:OWNER/NAME)",
    )
    out: Path = option(MISSING, "the folder of latents; the same command again goes on there")
    size: int = option(256, "the images' side after the ADM centre crop")
    vae: Place | None = option(
        "hub:stabilityai/sd-vae-ft-mse", "AutoencoderKL: folder or hub:OWNER/NAME; null: the pixels are the latents"
    )
    flips: bool = option(True, "encode mirrored images, too")
    dtype: Literal["float32", "float16"] = option(
        "float32", "of the shards; ImageNet at 256 takes 84 GB in float32, half of that in float16"
    )
    precision: Literal["no", "bf16"] = option("no", "autocast of the autoencoder")
    split: str = option("train", "of a Hugging Face dataset, or of Parquet files that have it in their names")
    image_column: str | None = option(None, "of tables; empty: image, img, jpg, ...")
    label_column: str | None = option(None, "of tables; empty: label, labels, cls, ..., or one class where none is")
    follow_links: bool = option(False, "follow links that lead out of the folder of images")
    batch_size: int = option(32, "images in one forward of the autoencoder")
    shard_size: int = option(1024, "images in one shard: what a kill costs at most")
    workers: int = option(4, "threads of each process that decode images")

    def check(self) -> None:
        limits = {"size": 2**13, "batch_size": 2**16, "shard_size": 2**20, "workers": 2**10}
        for key, most in limits.items():
            if not 1 <= getattr(self, key) <= most:
                raise UserError(f"{key}: wanted 1 to {most}, found {getattr(self, key)}")
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"out: wanted a folder, found a file at '{self.out}'")


@dataclass(frozen=True)
class Job:
    """One encoding: what every process knows of it."""

    config: EncodeConfig
    source: ImageSource
    encode: Encoder
    shape: tuple[int, int, int]
    device: torch.device

    @property
    def flips(self) -> int:
        return 2 if self.config.flips else 1

    def pieces(self) -> list[range]:
        """The images' numbers, shard by shard: the same cuts whatever the number of processes."""
        count, size = len(self.source), self.config.shard_size
        return [range(first, min(first + size, count)) for first in range(0, count, size)]

    def file(self, piece: range) -> Path:
        return shard_file(self.config.out, piece.start)

    def settings(self) -> dict[str, Any]:
        """What makes the latents what they are."""
        own = {key: value for key, value in resolve(self.config).items() if key not in ELSEWHERE}
        about = {"format": FORMAT, "images_sha256": self.source.sha256(), "vae_sha256": self.encode.digest}
        return {**own, **about, "classes": list(self.source.classes)}


def encode_to_shards(config: EncodeConfig) -> LatentSet:
    """Encode the images that have no sound shard yet; the finished set.

    Raises:
        UserError: no such images or autoencoder, shards of other settings, no image that can be read.
    """
    config.check()
    state = joined()
    launched(state.num_processes)
    source = open_source(config.images, config.split, config.image_column, config.label_column, config.follow_links)
    device = state.device or torch.device("cpu")
    encode = Encoder.load(config.vae, config.precision, device)
    job = Job(config, source, encode, encode.shape(config.size), device)
    if source.note and state.is_main_process:
        _log.warning("images: %s", source.note)
    settings = on_main(job.settings)
    out = config.out.absolute()
    with locked(out.parent / f".{out.name}.lock", "dit-shd encode"):
        on_main(lambda: claim(config.out, settings, "encode", "the latents"))
        _encode_missing(state, job)
        on_main(lambda: _finish(job, settings))
    return read_index(config.out)


def _encode_missing(state: Any, job: Job) -> None:
    def finished() -> int:
        firsts = [int(file.stem) for file in shard_files(job.config.out)]
        return sum(min(job.config.shard_size, len(job.source) - first) for first in firsts)

    def check(file: Path, piece: range) -> None:
        header = verify_shard(file)
        if header.shape[0] + len(header.skipped) != len(piece):
            raise damaged(file, f"it holds {header.shape[0]} images where {len(piece)} were wanted")

    missing = share_of_missing(state, job.pieces(), job.file, check)
    with Progress("encoding", len(job.source), finished, shown=state.is_main_process) as progress:
        for piece in missing:
            write_shard(job.file(piece), *encode_shard(job, piece, progress))
            progress.shard()
        state.wait_for_everyone()
        progress.shard()


def encode_shard(job: Job, numbers: range, progress: Progress) -> tuple[np.ndarray, np.ndarray, list[list[Any]]]:
    """Posterior [n,flips,parts,c,y,x], labels [n] and [number, name, reason] of the images that cannot be read."""
    row = (job.flips, job.encode.parts, *job.shape)
    posterior = np.empty((len(numbers), *row), np.dtype(job.config.dtype))
    kept: list[int] = []
    skipped: list[list[Any]] = []
    for batch, images in _decoded(job, numbers):
        sound = []
        for number, image in zip(batch, images):
            if isinstance(image, np.ndarray):
                sound.append(image)
                kept.append(number)
            else:
                skipped.append([number, job.source.name(number), str(image)])
        if sound:
            found = _posterior(job, np.stack(sound))
            if not np.isfinite(found).all():
                raise UserError(f"vae: what it makes of images {batch[0]}..{batch[-1]} is not finite; try precision=no")
            posterior[len(kept) - len(sound) : len(kept)] = found
        progress.step(len(batch))
    return posterior[: len(kept)], job.source.labels[kept], skipped


def _posterior(job: Job, images: np.ndarray) -> np.ndarray:
    """Posterior [b,flips,parts,c,y,x] of uint8 images [b,y,x,3]; a mirrored image is encoded, not a mirrored latent."""
    x = torch.from_numpy(images).to(job.device).permute(0, 3, 1, 2).float() / 127.5 - 1
    sides = [job.encode(x)] + ([job.encode(x.flip(-1))] if job.flips == 2 else [])
    return torch.stack(sides, dim=1).cpu().numpy().astype(job.config.dtype)


def _decoded(job: Job, numbers: range) -> Iterator[tuple[range, list[np.ndarray | BrokenImage]]]:
    """Batch by batch the crops of some images, decoded by threads while the batch before is encoded."""
    size = job.config.size

    def crop(raw: Any) -> np.ndarray | BrokenImage:
        try:
            return raw if isinstance(raw, BrokenImage) else pixels(raw, size)
        except BrokenImage as error:
            return error

    def raw(number: int) -> Any:
        try:
            return job.source.raw(number)
        except BrokenImage as error:
            return error

    waiting: deque = deque()
    with ThreadPoolExecutor(job.config.workers) as pool:
        for first in range(0, len(numbers), job.config.batch_size):
            batch = numbers[first : first + job.config.batch_size]
            waiting.append((batch, [pool.submit(crop, raw(number)) for number in batch]))
            if len(waiting) == 2:
                batch, futures = waiting.popleft()
                yield batch, [future.result() for future in futures]
        for batch, futures in waiting:
            yield batch, [future.result() for future in futures]


def _finish(job: Job, settings: dict[str, Any]) -> None:
    """List what was skipped, and write latents.json.

    Raises:
        UserError: no image could be read.
    """
    config = job.config
    headers = {job.file(piece): read_header(job.file(piece)) for piece in job.pieces()}
    skipped = [entry for header in headers.values() for entry in header.skipped]
    if skipped:
        _list(skipped, len(job.source), config.out / SKIPPED)
    if len(skipped) == len(job.source):
        raise UserError(f"images: none of '{config.images}' could be read; {skipped[0][1]}: {skipped[0][2]}")
    about = {key: value for key, value in settings.items() if key not in ("format", "classes")}
    write_index(
        LatentSet(
            folder=config.out,
            shape=job.shape,
            flips=job.flips,
            parts=job.encode.parts,
            dtype={str(dtype): name for name, dtype in DTYPES.items()}[config.dtype],
            classes=job.source.classes,
            about={"images": config.images, **about, "skipped": len(skipped)},
            shards=tuple(
                ShardEntry(file.name, header.shape[0], file.stat().st_size, header.sha256)
                for file, header in headers.items()
            ),
        )
    )


def _list(skipped: list[list[Any]], count: int, file: Path) -> None:
    with replacing_file(file) as stream:
        for _, name, reason in skipped:
            stream.write(json.dumps({"image": name, "reason": reason}).encode() + b"\n")
    _log.warning("%d of %d images could not be read and were skipped; %s lists them", len(skipped), count, file)
