"""Work in shards that can be stopped at any moment: the folder's settings, the missing shards, progress."""

import json
import logging
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_shd.core.errors import UserError, shortened
from dit_shd.core.files import PART, atomic_file

if TYPE_CHECKING:
    from accelerate import PartialState

_log = logging.getLogger("dit_shd")


LEFTOVERS = f".*{PART}"
"""Names of what was being written when a process was killed."""


def claim(folder: Path, settings: dict[str, Any], maker: str, what: str) -> None:
    """Make the folder of shards, or continue one that was made with the same settings.

    Args:
        folder: For shards and settings.json.
        settings: All that determines the shards' contents.
        maker: The command, for errors.
        what: The items in the shards, for errors.

    Raises:
        UserError: The folder holds shards of other settings, or cannot be made.
    """
    check_same(folder, settings, maker)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clear(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot hold the shards of {what} ({error.strerror})") from error
    if not (folder / SETTINGS).exists():
        with atomic_file(folder / SETTINGS) as stream:
            stream.write(json.dumps(settings).encode())


def clear(folder: Path) -> None:
    """Remove what processes that were killed have begun to write; nobody else may be writing."""
    for leftover in folder.glob(LEFTOVERS):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def check_same(folder: Path, settings: dict[str, Any], maker: str, beside: Collection[str] = ()) -> None:
    """Refuse a folder that was not made by `maker` with the same settings; files named in `beside` do not count.

    Raises:
        UserError: Naming the settings that differ.
    """

    def counts(file: Path) -> bool:
        return file.name not in beside and not file.match(LEFTOVERS)

    existing = read_settings(folder)
    if existing is None:
        if folder.exists() and (not folder.is_dir() or any(map(counts, folder.iterdir()))):
            raise UserError(f"{folder}: exists and was not made by {maker}; remove it or choose another out=")
        return
    if existing != settings:
        words = differences(existing, settings)
        if all(key.endswith("images_sha256") for key, _, _ in _differing(existing, settings)):
            raise UserError(
                f"{folder}: was made of other images: what is there has changed since ({words}); "
                "choose another out=, or remove it"
            )
        raise UserError(f"{folder}: holds shards of other settings ({words}); remove it or choose another out=")


def differences(existing: dict[str, Any], settings: dict[str, Any]) -> str:
    """The first three settings, as losses.0.weight, in which a folder's differ from new ones, with both values."""
    words = [
        f"{key}: {_shown(there)} there, {_shown(here)} here" for key, there, here in _differing(existing, settings)
    ]
    return ", ".join(words[:3]) + (", ..." if len(words) > 3 else "")


def _differing(there: Any, here: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:  # noqa: ANN401
    """Keys, and both values, of the parts that differ; plug-ins of two names, and lists of two lengths, are parts."""
    if isinstance(there, dict) and isinstance(here, dict) and there.get("name") == here.get("name"):
        keys = sorted(there.keys() | here.keys(), key=str)
        pairs = [(key, there.get(key), here.get(key)) for key in keys]
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        pairs = [(i, *pair) for i, pair in enumerate(zip(there, here))]
    else:
        yield where, there, here
        return
    for key, one, other in pairs:
        if one != other:
            yield from _differing(one, other, f"{where}.{key}" if where else str(key))


def _shown(value: object) -> str:
    """A value in few words: plug-ins by their names."""
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        return value["name"]
    return shortened(f"[{', '.join(map(_shown, value))}]" if isinstance(value, list) else repr(value))


def share_of_missing(
    state: "PartialState",
    pieces: Sequence[range],
    file_of: Callable[[range], Path],
    check: Callable[[Path, range], None],
) -> list[range]:
    """This process's share of the pieces that have no valid shard yet.

    Args:
        state: Of the process group; every process calls this with the same pieces.
        pieces: The items of each shard.
        file_of: The shard's file.
        check: Raises a UserError for a damaged shard, which is logged and removed.
    """
    rank, world = state.process_index, state.num_processes
    for piece in pieces[rank::world]:
        file = file_of(piece)
        try:
            if file.exists():
                check(file, piece)
        except UserError as error:
            _log.warning("%s", error)
            file.unlink()
    state.wait_for_everyone()
    missing = [piece for piece in pieces if not file_of(piece).exists()]
    state.wait_for_everyone()  # no process begins before all have listed what is missing
    return missing[rank::world]


class Progress:
    """A bar of the images of all processes, with images per second and the time left.

    Args:
        desc: Text before the bar.
        total: Number of images in all.
        finished: Counts the images in finished shards.
        shown: Whether this process shows the bar.
    """

    def __init__(self, desc: str, total: int, finished: Callable[[], int], shown: bool):
        from tqdm.auto import tqdm

        self._count = finished
        self.share, self.finished = 0.0, finished() if shown else 0
        self.bar = tqdm(
            total=total,
            initial=self.finished,
            desc=desc,
            disable=not shown,
            mininterval=0.1 if sys.stderr.isatty() else 10,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total} images "
            "[{elapsed} so far, {remaining} left, {rate_noinv_fmt}]",
            unit=" images",
        )

    def step(self, share: float) -> None:
        """Count work of this process: a number of images, or a fraction of one."""
        self.share += share
        self._show()

    def shard(self) -> None:
        """Count a shard of this process that is on disk."""
        self.share = 0.0
        if not self.bar.disable:
            self.finished = self._count()
        self._show()

    def _show(self) -> None:
        if not self.bar.disable:
            done = min(self.finished + self.share, self.bar.total)  # fractions add up to slightly more than an image
            self.bar.update(max(0.0, done - self.bar.n))

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()  # before an error's line is printed


SETTINGS = "settings.json"
"""File in the folder of shards: all that determines their contents."""


def read_settings(folder: Path) -> dict[str, Any] | None:
    """The settings that a folder's shards were made with; None where it is no folder of shards."""
    file = folder / SETTINGS
    if not file.is_file():
        return None
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); remove {folder} or choose another out=FILE") from error
    if not isinstance(settings, dict):
        raise UserError(f"{file}: holds no settings; remove {folder} or choose another out=FILE")
    return settings
