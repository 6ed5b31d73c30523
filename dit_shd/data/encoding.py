"""Encoding of images into latent shards, by one or several processes, resumable.

Each shard holds `shard_size` images. The same command again verifies the checksums of finished shards, encodes the
missing ones, and writes latents.json, which marks the set as complete.
"""

import logging
import os
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dit_shd.core.config import checked
from dit_shd.core.distributed import joined, launched, run_on_main
from dit_shd.core.errors import UserError
from dit_shd.core.lock import locked
from dit_shd.core.names import counted
from dit_shd.core.places import PIXELS
from dit_shd.core.pretrained import COPY
from dit_shd.core.resumable import LEFTOVERS, SETTINGS, Progress, claim, read_settings, share_of_missing
from dit_shd.data.encode_config import SD_VAE, EncodeConfig
from dit_shd.data.encoder import Encoder
from dit_shd.data.encoding_job import EncodingJob
from dit_shd.data.encoding_notes import summed, unreadable_classes, write_list
from dit_shd.data.latent_origin import keep_copy
from dit_shd.data.latent_shards import (
    DTYPES,
    LatentSet,
    ShardEntry,
    damaged,
    read_header,
    read_index,
    shard_files,
    verify_shard,
    write_index,
    write_shard,
)
from dit_shd.data.preprocessing import pixels
from dit_shd.data.sources.base import BrokenImage, ImageSource, Raw, Selection
from dit_shd.data.sources.captions import Captioned
from dit_shd.data.sources.detect import open_source
from dit_shd.data.sources.numbering import renumber
from dit_shd.data.text_encoding import PromptEncoder, encode_captions

SKIPPED = "skipped.jsonl"

if TYPE_CHECKING:
    from accelerate import PartialState

_log = logging.getLogger("dit_shd")


class NothingReadError(UserError):
    """None of a source's images can be read."""


def encode_to_shards(config: EncodeConfig, prompts: PromptEncoder | None = None) -> LatentSet:
    """Encode the images that have no sound shard yet, and their captions.

    Args:
        config: The images and the autoencoder.
        prompts: The text encoders of config.pipeline, if there is one.

    Returns:
        The finished set.

    Raises:
        UserError: No such images or autoencoder, shards of other settings, no image that can be read.
    """
    config, source, encode = opened(config, prompts)
    return encode_source(config, source, encode, prompts, (config.size, config.size))


def opened(config: EncodeConfig, prompts: PromptEncoder | None) -> tuple[EncodeConfig, ImageSource, Encoder]:
    """The config with what follows from it, the images, and the autoencoder on its device.

    Args:
        config: The images and the autoencoder.
        prompts: As in encode_to_shards.

    Raises:
        UserError: No such images or autoencoder.
    """
    config = checked(config, "encode")
    config.check()
    flips = config.pipeline is None if config.flips is None else config.flips
    config = replace(config, flips=flips, vae=None if config.vae == PIXELS else config.vae)
    state = joined()
    launched(state.num_processes)
    columns = (config.image_column, config.label_column)
    selection = Selection(config.split, config.subset, *columns, config.follow_links, labels=prompts is None)
    source = open_source(config.images, selection)
    source = renumber(source, config.classes)
    if prompts is not None:
        source = Captioned(source, source.texts(config.caption_column))
    device = state.device or torch.device("cpu")
    encode = _encoder(config, device)
    taken = f"taken: {len(source)}, classes: {counted([name for name in source.classes if name])}"
    for note in [taken, *source.notes] if state.is_main_process else ():
        _log.warning("images: %s", note)
    return config, source, encode


def _encoder(config: EncodeConfig, device: torch.device) -> Encoder:
    """The autoencoder on its device.

    Raises:
        UserError: There is none; of the one that nobody has named, what to name.
    """
    source = config.vae if config.pipeline is None else config.pipeline
    try:
        return Encoder.load(source, config.precision, device)
    except UserError as error:
        if source != SD_VAE:
            raise
        raise UserError(f"{error}; vae=FOLDER takes another, vae=pixels the pixels as they are") from error


def encode_source(
    config: EncodeConfig, source: ImageSource, encode: Encoder, prompts: PromptEncoder | None, crop: tuple[int, int]
) -> LatentSet:
    """Encode the images of a source into config.out.

    Args:
        config: As opened gives it.
        source: The images.
        encode: The autoencoder.
        prompts: As in encode_to_shards.
        crop: Height and width of the images.

    Returns:
        The finished set.

    Raises:
        NothingReadError: No image can be read.
        UserError: Shards of other settings.
    """
    state = joined()
    job = EncodingJob(config, source, encode, crop, encode.shape(*crop), state.device or torch.device("cpu"), prompts)
    if prompts is not None:
        prompts.check_sides(job.shape[1:])
    settings = run_on_main(job.settings)
    out = Path(os.path.realpath(config.out))  # one lock, by whichever link the folder is named
    out = out if os.access(out.parent, os.W_OK) else config.out.absolute()  # a link to a disk of which it is the top
    with locked(out.parent / f".{out.name}.lock", "dit-shd encode"):
        run_on_main(lambda: _begin(job, settings))
        _encode_missing(state, job)
        if prompts is not None:
            encode_captions(state, out, source, job.pieces(), prompts, config.text_dtype, config.batch_size)
        unread = run_on_main(lambda: _finish(job, settings))
    if unread is not None:
        raise NothingReadError(unread)
    return read_index(config.out)


def _begin(job: EncodingJob, settings: dict[str, Any]) -> None:
    """Claim the folder, and keep the autoencoder in it, which training on the latents uses, perhaps without network.

    A folder in which nothing was finished may be begun again with other settings, such as a smaller batch.
    """
    out = job.config.out
    begun = read_settings(out)
    if begun is not None and begun != settings and begun.get("format") == settings["format"]:
        finished = {file.name for file in out.iterdir() if not file.match(LEFTOVERS)}
        if finished <= {SETTINGS, COPY}:
            shutil.rmtree(out / COPY, ignore_errors=True)
            (out / SETTINGS).unlink()
    claim(job.config.out, settings, "encode", "the latents")
    if job.encode.autoencoder is not None and not (job.config.out / COPY).is_dir():
        keep_copy(job.encode.autoencoder, job.config.out / COPY)


def _encode_missing(state: "PartialState", job: EncodingJob) -> None:
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


def encode_shard(
    job: EncodingJob, numbers: range, progress: Progress
) -> tuple[np.ndarray, np.ndarray, list[list[Any]], list[list[Any]]]:
    """Encode the images of one shard.

    Returns:
        Posterior [n,flips,parts,c,y,x], labels [n], [number, name, reason] of the images that cannot be read, and
        [remark, count, first name] on the others.
    """
    row = (job.flips, job.encode.parts, *job.shape)
    posterior = np.empty((len(numbers), *row), np.dtype(job.config.dtype))
    kept: list[int] = []
    skipped: list[list[Any]] = []
    remarks: dict[str, list[Any]] = {}
    for batch, images in _decoded(job, numbers):
        sound = []
        for number, image in zip(batch, images):
            if not isinstance(image, BrokenImage):
                sound.append(image[0])
                kept.append(number)
                for remark in image[1]:
                    remarks.setdefault(remark, [remark, 0, job.source.name(number)])[1] += 1
            else:
                skipped.append([number, job.source.name(number), str(image)])
        if sound:
            latents = _posterior(job, np.stack(sound))
            if not np.isfinite(latents).all():
                remedy = "dtype=float32" if job.config.dtype == "float16" else "precision=no"
                raise UserError(f"vae: the latents of images {batch[0]}..{batch[-1]} are not finite; try {remedy}")
            posterior[len(kept) - len(sound) : len(kept)] = latents
        progress.step(len(batch))
    return posterior[: len(kept)], job.source.labels[kept], skipped, sorted(remarks.values())


def _posterior(job: EncodingJob, images: np.ndarray) -> np.ndarray:
    """Posterior [b,flips,parts,c,y,x] of uint8 images [b,y,x,3]; a mirrored image is encoded, not a mirrored latent."""
    x = torch.from_numpy(images).to(job.device).permute(0, 3, 1, 2).float() / 127.5 - 1
    sides = [job.encode(x)] + ([job.encode(x.flip(-1))] if job.flips == 2 else [])
    return torch.stack(sides, dim=1).cpu().numpy().astype(job.config.dtype)


Decoded = tuple[np.ndarray, tuple[str, ...]] | BrokenImage
"""A crop and remarks on it, or why there is none."""


def _decoded(job: EncodingJob, numbers: range) -> Iterator[tuple[range, list[Decoded]]]:
    """The crops of images, batch by batch, decoded by threads while the batch before is encoded."""
    size = job.crop

    def crop(raw: Raw | BrokenImage) -> Decoded:
        try:
            return raw if isinstance(raw, BrokenImage) else pixels(raw, size)
        except BrokenImage as error:
            return error

    def raw(number: int) -> Raw | BrokenImage:
        try:
            return job.source.raw(number)
        except BrokenImage as error:
            return error

    pending: deque[tuple[range, list[Future[Decoded]]]] = deque()
    with ThreadPoolExecutor(job.config.workers) as pool:
        for first in range(0, len(numbers), job.config.batch_size):
            batch = numbers[first : first + job.config.batch_size]
            pending.append((batch, [pool.submit(crop, raw(number)) for number in batch]))
            if len(pending) == 2:
                batch, futures = pending.popleft()
                yield batch, [future.result() for future in futures]
        for batch, futures in pending:
            yield batch, [future.result() for future in futures]


def _finish(job: EncodingJob, settings: dict[str, Any]) -> str | None:
    """List the skipped images, and write latents.json; where no image could be read, the reason in its place."""
    config = job.config
    headers = {job.file(piece): read_header(job.file(piece)) for piece in job.pieces()}
    skipped = [entry for header in headers.values() for entry in header.skipped]
    if skipped:
        write_list(skipped, len(job.source), config.out / SKIPPED)
    notes = summed(header.remarks for header in headers.values())
    if skipped:
        notes += unreadable_classes(job.source, headers)
    for note in notes:
        _log.warning("images: %s", note)
    if len(skipped) == len(job.source):
        return f"images: none of '{config.images}' could be read; {skipped[0][1]}: {skipped[0][2]}"
    about = {key: value for key, value in settings.items() if key not in ("format", "classes")}
    write_index(
        LatentSet(
            folder=config.out,
            shape=job.shape,
            flips=job.flips,
            parts=job.encode.parts,
            dtype={str(dtype): name for name, dtype in DTYPES.items()}[config.dtype],
            classes=job.source.classes,
            about={"images": config.images, **about, "skipped": len(skipped), "notes": [*job.source.notes, *notes]},
            shards=tuple(
                ShardEntry(file.name, header.shape[0], file.stat().st_size, header.sha256)
                for file, header in headers.items()
            ),
        )
    )
    return None
