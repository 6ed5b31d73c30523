"""Aspect-ratio buckets: images of many shapes, each cropped to the nearest of some heights and widths of equal area.

LATENTS/
  buckets.json   written last: the folders
  1024x1024/     height x width: a set of latents with embeddings of captions, as of images of one size
  832x1216/
"""

import json
import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from dit_shd.core.distributed import run_on_main
from dit_shd.core.errors import UserError, error_line
from dit_shd.core.files import write_text
from dit_shd.core.resumable import Progress, read_settings
from dit_shd.data.encode_config import EncodeConfig
from dit_shd.data.encoding import NothingReadError, encode_source, opened
from dit_shd.data.latent_shards import BUCKETS
from dit_shd.data.sources.base import BrokenImage, ImageSource, Raw, fingerprint
from dit_shd.data.sources.decoding import opened as opened_image
from dit_shd.data.text_encoding import PromptEncoder

STEPS = 16
"""Of a square's side: heights and widths are multiples of a sixteenth of it, or of what models take."""
WIDEST = 2.0
"""The largest ratio of the longer side to the shorter one."""
READ_AHEAD = 64
"""Images in memory whose headers are read by threads."""
PATCH = 2
"""Of the latents: heights and widths are multiples of it, whatever the model's is."""
Shape = tuple[int, int]
"""Height and width in pixels."""
_log = logging.getLogger("dit_shd")


def bucket_shapes(size: int, unit: int) -> list[Shape]:
    """Heights and widths of about size x size pixels, by their ratio.

    Args:
        size: The size of the square.
        unit: What heights and widths are multiples of.
    """
    step = max(unit, size // STEPS // unit * unit)
    shapes = {(height, max(step, round(size**2 / height / step) * step)) for height in range(step, 2 * size + 1, step)}
    narrow = {shape for shape in shapes if max(shape) / min(shape) <= WIDEST}
    turned = {(width, height) for height, width in narrow}
    return sorted({*narrow, *turned, (size, size)}, key=lambda shape: shape[0] / shape[1])


def nearest(shapes: Sequence[Shape], image: Shape) -> int:
    """The number of the shape whose ratio is nearest to an image's, in logarithms."""
    wanted = math.log(image[0] / image[1])
    return min(range(len(shapes)), key=lambda i: abs(math.log(shapes[i][0] / shapes[i][1]) - wanted))


def encode_buckets(config: EncodeConfig, prompts: PromptEncoder) -> dict[str, int]:
    """Encode images and captions into a set of latents for each shape; resumable, as sets of one shape.

    Args:
        config: The images and the pipeline.
        prompts: Its text encoders.

    Returns:
        The number of images by the name of the shape.

    Raises:
        UserError: As encode_to_shards.
    """
    if read_settings(config.out) is not None:
        raise UserError(
            f"{config.out}: was made for images of one size, without buckets; remove it or choose another out="
        )
    config, source, encode = opened(config, prompts)
    if config.size % (encode.factor * PATCH):
        raise UserError(
            f"size: wanted a multiple of {encode.factor * PATCH} for buckets, since models divide them into patches of "
            f"{PATCH} latents, found {config.size}"
        )
    shapes = bucket_shapes(config.size, encode.factor * PATCH)
    chosen = np.array(run_on_main(lambda: _choose(source, shapes, config.workers)))
    counts: dict[str, int] = {}
    for number in np.unique(chosen):
        prompts.check_sides(encode.shape(*shapes[number])[1:])
    sha256 = source.sha256()
    for number in np.unique(chosen):
        height, width = shapes[number]
        name = f"{height}x{width}"
        part = Subset(source, np.flatnonzero(chosen == number), sha256)
        if not any(part.captions or ()):
            continue
        prompts.record = replace(prompts.record, size=(height, width))
        try:
            made = encode_source(replace(config, out=config.out / name), part, encode, prompts, (height, width))
        except NothingReadError:
            _log.warning("buckets: %s has no image that can be read, and is left out", name)
            continue
        counts[name] = len(made)
        _log.info("buckets: %s has %d images", name, len(made))
    if not counts:
        raise UserError(f"images: none of '{config.images}' could be read; see the reasons above")
    run_on_main(lambda: write_text(config.out / BUCKETS, json.dumps({"buckets": counts}, indent=1) + "\n"))
    return counts


def bucket_folders(folder: Path) -> list[Path] | None:
    """The sets of a folder of buckets; None where it is another folder.

    Raises:
        UserError: The file was not written by dit-shd encode.
    """
    file = folder / BUCKETS
    if not file.is_file():
        return None
    try:
        names = [str(name) for name in json.loads(file.read_text(encoding="utf-8"))["buckets"]]
        if not names or any("/" in name or name.startswith(".") for name in names):
            raise ValueError("no buckets, or names that are no folders")
    except Exception as error:  # an untrusted file can be wrong in any way
        raise UserError(f"{file}: not written by dit-shd encode ({error_line(error, 100)}); encode again") from error
    return [folder / name for name in names]


class Subset(ImageSource):
    """Some of a source's images.

    Args:
        source: With captions.
        numbers: The numbers of the images, ascending.
        sha256: Of the source, which looks at each of its files for it.
    """

    def __init__(self, source: ImageSource, numbers: np.ndarray, sha256: str) -> None:
        self._source, self._numbers, self._sha256 = source, numbers, sha256
        self.labels, self.classes, self.notes = source.labels[numbers], source.classes, source.notes
        assert source.captions is not None, "buckets are of images with captions"
        self.captions = [source.captions[number] for number in numbers]

    def raw(self, number: int) -> Raw:
        return self._source.raw(int(self._numbers[number]))

    def name(self, number: int) -> str:
        return self._source.name(int(self._numbers[number]))

    def sha256(self) -> str:
        return fingerprint([self._sha256, self._numbers.astype("<i8").tobytes()])


def _choose(source: ImageSource, shapes: Sequence[Shape], workers: int) -> list[int]:
    """The number of each image's shape; the source is read in order and by one thread, headers by several."""
    count = len(source)
    chosen: list[int] = []
    with ThreadPoolExecutor(workers) as pool, Progress("shapes", count, lambda: 0, shown=True) as progress:
        for first in range(0, count, READ_AHEAD):
            numbers = range(first, min(first + READ_AHEAD, count))
            raws = [_raw(source, number) for number in numbers]
            for shape in pool.map(_shape, raws, map(source.name, numbers)):
                chosen.append(nearest(shapes, shape))
                progress.step(1)
    return chosen


def _raw(source: ImageSource, number: int) -> Raw | None:
    """An image in its stored form; None where it cannot be read."""
    try:
        return source.raw(number)
    except BrokenImage:
        return None


def _shape(raw: Raw | None, name: str) -> Shape:
    """Height and width of an image by its header; a square's where it cannot be read, which encoding then says."""
    if raw is None:
        return 1, 1
    if isinstance(raw, np.ndarray):
        return raw.shape[0], raw.shape[1]
    try:
        with opened_image(raw) as image:
            return image.height, image.width
    except MemoryError:
        raise
    except Exception as error:  # an untrusted file can be wrong in any way
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{name}: {error.strerror}; try again") from error
        return 1, 1
