"""Class folders: `folder/class/.../image.jpg`, the class being the first folder."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dit_shd.core.errors import UserError
from dit_shd.data.sources.base import ALL, NO_LABELS, BrokenImage, ImageSource, fingerprint

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm")


@dataclass(frozen=True)
class Scan:
    """What lies below a folder, sorted, as paths from there; names that begin with a dot are left out."""

    root: Path
    classes: tuple[str, ...]
    """The folders in it, by number where all are numbers."""
    images: list[str]
    others: list[str]
    links: bool
    """Links that lead out of the folder are followed."""

    def told(self) -> str:
        """How many files are no images, by suffix."""
        counts = Counter(os.path.splitext(file)[1] or "no suffix" for file in self.others)
        return ", ".join(f"{n} {suffix}" for suffix, n in counts.most_common(5)) or "it is empty"


def scan(root: Path, follow_links: bool) -> Scan:
    """Look through a folder once.

    Raises:
        UserError: a folder that is a link, when links are not followed: nothing is left out without a word.
    """
    images, others, classes, seen = [], [], [], set()
    for place, folders, files in os.walk(root, followlinks=follow_links):
        here = os.path.relpath(place, root)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if follow_links:
            folders[:] = [name for name in folders if _first_time(os.path.join(place, name), seen)]
        else:
            linked = next((name for name in folders if os.path.islink(os.path.join(place, name))), None)
            if linked is not None:
                raise UserError(f"images: {os.path.join(place, linked)} is a link; follow_links=true follows links")
        if here == ".":
            classes = list(folders)
        for name in sorted(files):
            if not name.startswith("."):
                path = name if here == "." else os.path.join(here, name)
                (images if name.lower().endswith(SUFFIXES) else others).append(path)
    if all(name.isdecimal() for name in classes):
        classes.sort(key=int)
    return Scan(root, tuple(classes), sorted(images), sorted(others), follow_links)


def _first_time(folder: str, seen: set[tuple[int, int]]) -> bool:
    """Links can lead in circles."""
    told = os.stat(folder)
    identity = (told.st_dev, told.st_ino)
    return identity not in seen and not seen.add(identity)


class FolderImages(ImageSource):
    """The images of a Scan, in the order of their paths.

    Raises:
        UserError: images beside class folders, which would belong to no class.
    """

    def __init__(self, found: Scan):
        self._scan, self._root = found, found.root.resolve()
        loose = [path for path in found.images if os.sep not in path]
        if loose and len(loose) < len(found.images):
            raise UserError(
                f"images: wanted images in class folders or without any, found both in '{found.root}' ({loose[0]}, ...)"
            )
        self.classes = (ALL,) if loose else found.classes
        notes = [NO_LABELS] if loose else []
        if found.others:
            notes.append(f"{len(found.others)} files in '{found.root}' are no images and left out ({found.told()})")
        self.note = "; ".join(notes)
        number = {name: i for i, name in enumerate(found.classes)}
        firsts = (0 if loose else number[path.split(os.sep, 1)[0]] for path in found.images)
        self.labels = np.fromiter(firsts, np.int64, len(found.images))

    def raw(self, number: int) -> Path:
        path = self._root / self._scan.images[number]
        if not path.is_file():  # nor a link in a circle, nor a pipe that nobody writes to
            raise BrokenImage("no regular file")
        if not self._scan.links and not path.resolve().is_relative_to(self._root):
            raise BrokenImage("a link that leads out of the folder; follow_links=true follows it")
        return path

    def name(self, number: int) -> str:
        return self._scan.images[number]

    def sha256(self) -> str:
        return fingerprint(f"{path} {self._size(path)}" for path in self._scan.images)

    def _size(self, path: str) -> int:
        try:
            return os.stat(self._root / path).st_size
        except OSError:  # a broken link
            return -1
