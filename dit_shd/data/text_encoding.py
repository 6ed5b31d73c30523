"""Encoding of captions: embeddings beside the latents of their images, by one or several processes, resumable.

LATENTS/text/
  text.json              written last: the pipeline, the widths, and every shard with its count, size and sha256
  empty.safetensors      the pipeline's default negative prompt, for dropped captions
  000000000.safetensors  of the images of the shard of latents of this name: each caption once, and which is whose
"""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from dit_shd.core.distributed import run_on_main
from dit_shd.core.errors import UserError
from dit_shd.core.resumable import Progress, clear, share_of_missing
from dit_shd.data.latent_shards import damaged, read_header
from dit_shd.data.pipeline_record import PipelineRecord
from dit_shd.data.sources.base import ImageSource
from dit_shd.data.text_condition import TextCondition
from dit_shd.data.text_shards import DTYPES, EMPTY, FOLDER, TextShard, verify, write_condition, write_index, write_shard

if TYPE_CHECKING:
    from accelerate import PartialState

_log = logging.getLogger("dit_shd")


class PromptEncoder(Protocol):
    """The text encoders of a pipeline."""

    record: PipelineRecord

    def __call__(self, prompts: Sequence[str]) -> TextCondition:
        """The condition of prompts, on the CPU."""
        ...

    def empty(self) -> TextCondition:
        """The condition of no prompt [1,...]."""
        ...

    def too_long(self, prompts: Sequence[str]) -> int:
        """How many of some prompts are longer than the encoders take, which cut them."""
        ...

    def check_sides(self, sides: tuple[int, int]) -> None:
        """Refuse latents of a height and width that the pipeline's transformer does not take.

        Raises:
            UserError: Naming both.
        """
        ...


def encode_captions(
    state: "PartialState",
    folder: Path,
    source: ImageSource,
    pieces: Sequence[range],
    encoder: PromptEncoder,
    dtype: str,
    batch_size: int,
) -> None:
    """Encode the captions of the images that are in a finished set of latent shards.

    Args:
        state: Of the process group; every process calls this with the same arguments.
        folder: The folder of the latents.
        source: The source of the images.
        pieces: The images' numbers, shard by shard.
        encoder: The encoder of the pipeline.
        dtype: The dtype of the embeddings.
        batch_size: Captions in one forward of the text encoders.

    Raises:
        UserError: Embeddings that are not finite.
    """

    def begin() -> None:
        (folder / FOLDER).mkdir(exist_ok=True)
        clear(folder / FOLDER)

    run_on_main(begin)

    def file_of(piece: range) -> Path:
        return folder / FOLDER / f"{piece.start:09d}.safetensors"

    def numbers_of(piece: range) -> list[int]:
        skipped = {entry[0] for entry in read_header(folder / file_of(piece).name).skipped}
        return [number for number in piece if number not in skipped]

    def check(file: Path, piece: range) -> None:
        if verify(file).count != len(numbers_of(piece)):
            raise damaged(file, "it holds captions of other images")

    def finished() -> int:
        return sum(len(piece) for piece in pieces if file_of(piece).exists())

    def write_empty() -> None:
        write_condition(folder / FOLDER / EMPTY, _cast(encoder.empty(), dtype))

    run_on_main(write_empty)
    missing = share_of_missing(state, pieces, file_of, check)
    with Progress("text", sum(map(len, pieces)), finished, shown=state.is_main_process) as progress:
        for piece in missing:
            captions = [source.captions[number] or "" for number in numbers_of(piece)]  # type: ignore[index]
            write_shard(file_of(piece), encode_shard(captions, encoder, dtype, batch_size))
            progress.shard()
        state.wait_for_everyone()
    run_on_main(lambda: _finish(folder, [file_of(piece) for piece in pieces], encoder.record, dtype))


def encode_shard(captions: Sequence[str], encoder: PromptEncoder, dtype: str, batch_size: int) -> TextShard:
    """The shard of some images' captions, each different one encoded once."""
    different = list(dict.fromkeys(captions)) or [""]  # of a shard all of whose images were left out
    rows = {caption: row for row, caption in enumerate(different)}
    parts = (
        _cast(encoder(different[first : first + batch_size]), dtype) for first in range(0, len(different), batch_size)
    )
    return TextShard(
        condition=gathered(parts, len(different)),
        rows=torch.tensor([rows[caption] for caption in captions], dtype=torch.int64),
        captions=tuple(different),
        too_long=encoder.too_long(different),
    )


def gathered(parts: Iterable[TextCondition], count: int) -> TextCondition:
    """Conditions one after the other, padded to one length; no two copies of all are held unless that grows.

    Args:
        parts: At least one.
        count: Of their prompts, in all.
    """
    whole, first = None, 0
    for part in parts:
        if whole is None or part.tokens > whole.tokens:
            wider = part.zeros(count)
            if whole is not None:
                wider.put(0, whole)
            whole = wider
        whole.put(first, part)
        first += len(part.mask)
    assert whole is not None and first == count
    return whole


def _cast(condition: TextCondition, dtype: str) -> TextCondition:
    def cast(x: Tensor) -> Tensor:
        x = x.detach().cpu().to(DTYPES[dtype])
        if not bool(torch.isfinite(x).all()):
            raise UserError(f"text: embeddings are not finite in {dtype}; try text_dtype=float32 or precision=no")
        return x.contiguous()

    pooled = None if condition.pooled is None else cast(condition.pooled)
    return TextCondition(cast(condition.embeddings), condition.mask.cpu().contiguous(), pooled)


def _finish(folder: Path, files: Sequence[Path], record: PipelineRecord, dtype: str) -> None:
    entries = write_index(folder, files, record, dtype)
    too_long = sum(entry.too_long for entry in entries)
    if too_long:
        _log.warning("captions: %d are longer than the text encoders take, and were cut", too_long)
