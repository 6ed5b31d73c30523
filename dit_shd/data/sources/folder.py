"""Folders of images: labels are those of a label file, or `folder/class/.../image.jpg`, the class being the first."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from dit_shd.core.errors import UserError
from dit_shd.data.sources.base import ALL, NO_LABELS, BrokenImage, ImageSource, fingerprint
from dit_shd.data.sources.classes import from_names, from_values
from dit_shd.data.sources.label_files import LabelFiles, ancestors, matched
from dit_shd.data.sources.listing import Listing, counted, printable
from dit_shd.data.sources.splits import SplitFolders, split_of


class FolderSource(ImageSource):
    """The images of a Listing, in the order of their paths.

    Args:
        split: the one to be read, where folders of splits are there.
        label_column: of a label file.

    Raises:
        UserError: folders of splits and none asked for, images beside class folders, which would belong to no class,
            or a label file that is wrong.
    """

    def __init__(self, found: Listing, split: str | None = None, label_column: str | None = None):
        self._links, self._root = found.links, found.root.resolve()
        where, notes = printable(str(found.root)), []
        images, classes = _of_split(found, split, where, notes)
        files = LabelFiles(found, images, label_column)
        notes += files.notes
        self._labelled = bool(files.used)
        if files.used and not files.none:
            images, values, told = matched(files, images, found.images, where)
            self.labels, self.classes, more = from_values(values, None, where)
        elif files.none or not any(classes):
            self.labels, self.classes = np.zeros(len(images), np.int64), (ALL,)
            told, more = [f"{files.used[0]}: {NO_LABELS}" if files.none else NO_LABELS], []
        else:
            _check_loose(images, classes, where)
            self.labels, self.classes, more = from_names(classes, where)
            told = _of_folders(found, images, set(classes))
        self._images = images
        self.notes = [*notes, *told, *more, *found.notes(files.used)]

    def raw(self, number: int) -> Path:
        path = self._root / self._images[number]
        if not path.is_file():  # nor a link in a circle, nor a pipe that nobody writes to
            raise BrokenImage("no regular file")
        if not self._links and not path.resolve().is_relative_to(self._root):
            raise BrokenImage("a link that leads out of the folder; follow_links=true follows it")
        return path

    def name(self, number: int) -> str:
        return self._images[number]

    def sha256(self) -> str:
        told = [f"{path} {self._size(path)}" for path in self._images]
        return fingerprint([*told, self.labels.tobytes()] if self._labelled else told)

    def _size(self, path: str) -> int:
        try:
            return os.stat(self._root / path).st_size
        except OSError:  # a broken link
            return -1


def _of_split(found: Listing, split: str | None, where: str, notes: list[str]) -> tuple[list[str], list[str]]:
    """Images of the split and the class folder of each, "" where there is none."""
    paths = [tuple(path.split(os.sep)) for path in found.images]
    layout = SplitFolders.find({path[:-1] for path in paths})
    if layout is None:
        if split is not None and split_of(found.root.resolve().name) != (split_of(split) or split):
            raise UserError(
                f"split: '{where}' has no folders of splits, such as train and val; leave out split={split}"
            )
        return found.images, [path[0] if len(path) > 1 else "" for path in paths]
    chosen = layout.chosen(split, where)
    kept = [path for path in paths if layout.split(path[:-1]) == chosen]
    if len(kept) < len(paths):
        others = ", ".join(printable(name) for name in layout.names if name != chosen)
        notes.append(f"left out: {len(paths) - len(kept)} images of other folders than {printable(chosen)} ({others})")
    inner = [layout.inner(path) for path in kept]
    return [os.sep.join(path) for path in kept], [path[0] if len(path) > 1 else "" for path in inner]


def _check_loose(images: Sequence[str], classes: Sequence[str], where: str) -> None:
    loose = next((image for image, name in zip(images, classes) if not name), None)
    if loose is not None:
        raise UserError(
            f"images: wanted images in class folders or without any, found both in '{where}' ({printable(loose)}, ...)"
        )


def _of_folders(found: Listing, images: Sequence[str], classes: Collection[str]) -> list[str]:
    """What became no class, and one folder around all others, which is a class where perhaps those in it were meant."""
    used = {folder for image in found.images for folder in ancestors(image)}
    first = images[0].split(os.sep)
    beside = os.sep.join(first[: next(i for i, name in enumerate(first) if name in classes)])
    empty = [folder for folder in found.folders if os.path.dirname(folder) == beside and folder not in used]
    notes = [f"no classes: {counted(empty)}, folders without an image"] if empty else []
    deeper = {tuple(image.split(os.sep)[:-1]) for image in images}
    if len(classes) == 1 and len(deeper) > 1:
        name = printable(next(iter(classes)))
        notes.append(f"all images are of the class {name}; if the folders in it are the classes, say images=.../{name}")
    return notes
