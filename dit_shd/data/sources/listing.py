"""Which files of a folder are images, and which are left out: the rule of `encode` and of folders to be evaluated.

A file is an image by its suffix (contents are checked later). Names that begin with a dot and folders that systems
create are left out at any depth. Files that are left out are counted, and `Listing.notes` gives the reasons.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from dit_shd.core.errors import UserError
from dit_shd.core.names import counted, printable

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
NOT_READ = (".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".tga", ".ico", ".exr", ".psd", ".svg")
"""Suffixes of formats that are not decoded: their decoders never see untrusted files."""
SYSTEM = {
    "__macosx", "__pycache__", "@eadir", "@tmp", "lost+found", "$recycle.bin", "system volume information",
    "#recycle", "@recycle", "@recently-snapshot", "#snapshot",
}  # fmt: skip
"""Folders of archivers, interpreters, file systems and storage boxes, in lower case; some hold thumbnails."""

HIDDEN = "hidden, by a dot before the name"
OF_SYSTEM = "in folders of the system"
HERE_ANYWAY = "links to folders that are here anyway"


@dataclass(frozen=True)
class Listing:
    """The files and folders below a folder, as paths from it, sorted."""

    root: Path
    images: list[str]
    others: list[str]
    """Files that are no images by their names."""
    folders: list[str]
    """With or without images."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Paths by the reason."""
    links: bool = False
    """Whether links that lead out of the folder are followed."""

    def summary(self) -> str:
        """Numbers of files that are no images, by suffix, and of those left out, by reason."""
        counts = [_by_suffix(self.others)] if self.others else []
        counts += [f"{len(paths)} {reason}" for reason, paths in self.left_out.items()]
        return ", ".join(counts) or "it is empty"

    def notes(self, used: Iterable[str] = ()) -> list[str]:
        """What was left out and why, one line for each reason.

        Args:
            used: Files that are no images and are used nevertheless.
        """
        others = sorted({*self.others} - {*used})
        pictures = [path for path in others if path.lower().endswith(NOT_READ)]
        rest = [path for path in others if not path.lower().endswith(NOT_READ)]
        notes = [f"left out: {counted(paths)} {reason}" for reason, paths in self.left_out.items()]
        if pictures:
            notes.append(f"left out: {_by_suffix(pictures)}, a kind of picture that is not read; save them as png")
        if rest:
            notes.append(f"left out: {len(rest)} files that are no images ({_by_suffix(rest)})")
        return notes


def scan(root: Path, follow_links: bool, what: str = "images") -> Listing:
    """List the files below a folder.

    Args:
        root: The folder.
        follow_links: Whether to follow links to folders.
        what: The files in the user's words, for errors.

    Raises:
        UserError: A folder that is a link, when links are not followed: nothing is left out silently.
    """
    images, others, all_folders, seen = [], [], [], {_identity(root)}
    left_out: dict[str, list[str]] = {}
    for place, folders, files in os.walk(root, onerror=partial(_refuse, what), followlinks=follow_links):
        here = os.path.relpath(place, root)
        folders[:] = sorted(_worthwhile(root, here, folders, left_out))
        _check_links(root, here, folders, follow_links, seen, left_out)
        all_folders += [_joined(here, name) for name in folders]
        for name in sorted(files):
            path = _joined(here, name)
            if name.startswith("."):
                left_out.setdefault(HIDDEN, []).append(path)
            else:
                (images if name.lower().endswith(SUFFIXES) else others).append(path)
    left_out = {reason: sorted(paths) for reason, paths in left_out.items()}
    return Listing(root, sorted(images), sorted(others), sorted(all_folders), left_out, follow_links)


def _refuse(what: str, error: OSError) -> None:
    raise UserError(f"{what}: {printable(str(error.filename))} cannot be read ({error.strerror})")


def _joined(here: str, name: str) -> str:
    return name if here == "." else os.path.join(here, name)


def _worthwhile(root: Path, here: str, folders: list[str], left_out: dict[str, list[str]]) -> Iterator[str]:
    """The folders to be listed; the files below the others are counted as left out."""
    for name in folders:
        reason = HIDDEN if name.startswith(".") else OF_SYSTEM if name.lower() in SYSTEM else None
        if reason is None:
            yield name
            continue
        below = [os.path.join(place, file) for place, _, files in os.walk(root / here / name) for file in files]
        paths = [os.path.relpath(path, root) for path in below] or [_joined(here, name) + os.sep]
        left_out.setdefault(reason, []).extend(paths)


def _check_links(
    root: Path, here: str, folders: list[str], follow: bool, seen: set[tuple[int, int]], left_out: dict[str, list[str]]
) -> None:
    """Remove links to folders that are listed anyway, in circles or not; a folder is listed by its own name first."""
    kept = []
    for name in folders:
        path = os.path.join(root, _joined(here, name))
        link = os.path.islink(path)
        if link and not follow:
            raise UserError(f"images: {printable(path)} is a link; follow_links=true follows links")
        identity, target = _identity(path), Path(path).resolve() if link else None
        inside = target is not None and (target.is_relative_to(root.resolve()) or root.resolve().is_relative_to(target))
        if inside or (identity in seen):
            left_out.setdefault(HERE_ANYWAY, []).append(_joined(here, name))
        else:
            seen.add(identity)
            kept.append(name)
    folders[:] = kept


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _by_suffix(paths: list[str]) -> str:
    counts = Counter(os.path.splitext(path)[1] or "no suffix" for path in paths)
    return ", ".join(f"{n} {printable(suffix)}" for suffix, n in counts.most_common(5))
