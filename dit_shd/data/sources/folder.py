"""Folders of images: labels are those of a label file, or of the first folder in `folder/class/.../image.jpg`."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from dit_shd.core.errors import UserError
from dit_shd.core.names import counted, printable
from dit_shd.data.sources import captions
from dit_shd.data.sources.base import (
    NO_LABELS,
    BrokenImage,
    ImageSource,
    Labelled,
    Selection,
    fingerprint,
    not_used,
    one_class,
)
from dit_shd.data.sources.classes import from_names, from_values
from dit_shd.data.sources.label_files import LabelFiles, ancestors, matched
from dit_shd.data.sources.listing import Listing
from dit_shd.data.sources.splits import SplitFolders, split_of


class FolderSource(ImageSource):
    """The images of a Listing, in the order of their paths.

    Args:
        listing: The folder's files.
        selection: The split to be read, if there are folders of splits, and the column of a label file.

    Raises:
        UserError: Folders of splits and no split given, images beside class folders, which would belong to no class,
            or a faulty label file.
    """

    def __init__(self, listing: Listing, selection: Selection | None = None) -> None:
        self._listing, self._links, self._root = listing, listing.links, listing.root.resolve()
        where, notes = printable(str(listing.root)), []
        selection = selection or Selection()
        images, classes = _images_of_split(listing, selection.split, where, notes)
        try:
            self._images, labelled, files = _labelled(listing, images, classes, selection.label_column, where)
        except UserError as error:
            if selection.needs_labels:
                raise
            self._images, labelled = images, (*one_class(len(images)), [not_used(error)])
            files = LabelFiles(listing, [], None)
        self._labelled, self._label_files = bool(files.used), files
        self.labels, self.classes, class_notes = labelled
        self._own_notes = [*notes, *class_notes]
        self.notes = self._notes([])

    def raw(self, number: int) -> Path:
        """The path of the image.

        Raises:
            BrokenImage: Not a regular file, or a link out of the folder when links are not followed.
            UserError: It was there when the folder was listed and is gone, as of a disk that went away.
        """
        path = self._root / self._images[number]
        if not os.path.lexists(path):
            raise UserError(f"images: {printable(str(path))} was listed and is gone; the same command goes on")
        if not path.is_file():  # also a link in a circle, or a pipe without a writer
            raise BrokenImage("no regular file")
        if not self._links and not path.resolve().is_relative_to(self._root):
            raise BrokenImage("a link that leads out of the folder; follow_links=true follows it")
        return path

    def name(self, number: int) -> str:
        """The path below the folder."""
        return self._images[number]

    def sha256(self) -> str:
        """Hash of paths and sizes, and of the labels of label files."""
        files = [f"{path} {self._size(path)}" for path in self._images]
        return fingerprint([*files, self.labels.tobytes()] if self._labelled else files)

    def texts(self, column: str | None) -> list[str | None]:
        beside = captions.of_folder(self._listing, self._images, column)
        self.notes = [*self._notes(beside.files), *beside.notes]
        return beside.texts

    def _notes(self, of_captions: Collection[str]) -> list[str]:
        """Remarks for the user, where some files have captions."""
        unused = self._label_files.unused.items()
        reasons = [f"{printable(file)} {reason}" for file, reason in unused if file not in of_captions]
        return [*reasons, *self._own_notes, *self._listing.notes([*self._label_files.used, *of_captions])]

    def _size(self, path: str) -> int:
        try:
            return os.stat(self._root / path).st_size
        except OSError:  # a broken link
            return -1


def _images_of_split(listing: Listing, split: str | None, where: str, notes: list[str]) -> tuple[list[str], list[str]]:
    """Images of the split and the class folder of each, "" if there is none."""
    paths = [tuple(path.split(os.sep)) for path in listing.images]
    layout = SplitFolders.find({path[:-1] for path in paths})
    if layout is None:
        if split is not None and split_of(listing.root.resolve().name) != (split_of(split) or split):
            raise UserError(
                f"split: '{where}' has no folders of splits, such as train and val; leave out split={split}"
            )
        return listing.images, [path[0] if len(path) > 1 else "" for path in paths]
    chosen = layout.chosen(split, where)
    kept = [path for path in paths if layout.split(path[:-1]) == chosen]
    if len(kept) < len(paths):
        others = ", ".join(printable(name) for name in layout.names if name != chosen)
        notes.append(f"left out: {len(paths) - len(kept)} images of other folders than {printable(chosen)} ({others})")
    inner = [layout.inner(path) for path in kept]
    return [os.sep.join(path) for path in kept], [path[0] if len(path) > 1 else "" for path in inner]


def _labelled(
    listing: Listing, images: list[str], classes: Sequence[str], label_column: str | None, where: str
) -> tuple[list[str], Labelled, LabelFiles]:
    """The images that are taken, their labels, and the files of labels.

    Raises:
        UserError: Images beside class folders, or a faulty label file.
    """
    files = LabelFiles(listing, images, label_column)
    if files.used and not files.none:
        images, values, notes = matched(files, images, listing.images, where)
        labels, names, class_notes = from_values(values, None, where)
    elif files.none or not any(classes):
        (labels, names), class_notes = one_class(len(images)), []
        notes = [f"{files.used[0]}: {NO_LABELS}" if files.none else NO_LABELS]
    else:
        _check_loose(images, classes, where)
        labels, names, class_notes = from_names(classes, where)
        notes = _folder_notes(listing, images, set(classes))
    return images, (labels, names, [*notes, *class_notes]), files


def _check_loose(images: Sequence[str], classes: Sequence[str], where: str) -> None:
    loose = next((image for image, name in zip(images, classes) if not name), None)
    if loose is not None:
        raise UserError(
            f"images: wanted images in class folders or without any, found both in '{where}' ({printable(loose)}, ...)"
        )


def _folder_notes(listing: Listing, images: Sequence[str], classes: Collection[str]) -> list[str]:
    """Notes on folders without images, and on a single class folder whose subfolders may be the intended classes."""
    used = {folder for image in listing.images for folder in ancestors(image)}
    first = images[0].split(os.sep)
    beside = os.sep.join(first[: next(i for i, name in enumerate(first) if name in classes)])
    empty = [folder for folder in listing.folders if os.path.dirname(folder) == beside and folder not in used]
    notes = [f"no classes: {counted(empty)}, folders without an image"] if empty else []
    deeper = {tuple(image.split(os.sep)[:-1]) for image in images}
    if len(classes) == 1 and len(deeper) > 1:
        name = printable(next(iter(classes)))
        notes.append(f"all images are of the class {name}; if the folders in it are the classes, say images=.../{name}")
    return notes
