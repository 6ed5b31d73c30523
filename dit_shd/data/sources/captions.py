"""Captions of images: beside them in IMAGE.txt or IMAGE.json, in Hugging Face's metadata, or in a column of a table."""

import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dit_shd.core.errors import UserError, error_line
from dit_shd.core.names import counted, printable
from dit_shd.data.sources.base import BrokenImage, ImageSource, Raw, fingerprint
from dit_shd.data.sources.caption_cells import (
    NAMES,
    UNREAD,
    BrokenCaption,
    column_of,
    of_cells,
    of_json,
    texts_of,
    unread,
)
from dit_shd.data.sources.label_files import FILE_NAME, METADATA_READERS
from dit_shd.data.sources.listing import Listing

NO_CAPTION = "it has no caption"
UNREADABLE = "\ufffd"
"""What stands for bytes that are no letters."""
MOST_BYTES = 2**20
"""Of a file with a caption."""


class Captioned(ImageSource):
    """A source whose images each have a caption; those without one are left out as broken images are.

    Args:
        source: The images.
        captions: The caption of each, None or empty where there is none.

    Raises:
        UserError: There are none at all.
    """

    def __init__(self, source: ImageSource, captions: Sequence[str | None]) -> None:
        self._source = source
        texts = [_whole(caption or "").strip() or None for caption in captions]
        self.captions = texts
        self.labels, self.classes = source.labels, source.classes
        missing = [number for number, caption in enumerate(texts) if caption is None]
        if len(missing) == len(texts):
            why = next((note for note in source.notes if UNREAD in note), BESIDE)
            raise UserError(f"images: wanted captions, found none for any of {len(missing)} images; {why}")
        shown = ", ".join(printable(source.name(number)) for number in missing[:3])
        more = ", ..." if len(missing) > 3 else ""
        notes = [f"left out: {len(missing)} images without a caption ({shown}{more})"] if missing else []
        replaced = [number for number, caption in enumerate(texts) if UNREADABLE in (caption or "")]
        if replaced:
            notes.append(
                f"{len(replaced)} captions are not UTF-8 throughout, and have {UNREADABLE} where they are not "
                f"({printable(source.name(replaced[0]))}, ...)"
            )
        lines = [number for number, caption in enumerate(texts) if "\n" in (caption or "")]
        if lines:
            first = printable(source.name(lines[0]))
            notes.append(f"{len(lines)} captions are of several lines, each of them one caption ({first}, ...)")
        self.notes = [*source.notes, *notes]
        self._texts = texts

    def raw(self, number: int) -> Raw:
        if self._texts[number] is None:
            raise BrokenImage(NO_CAPTION)
        return self._source.raw(number)

    def name(self, number: int) -> str:
        return self._source.name(number)

    def sha256(self) -> str:
        """Hash of the source and of the captions."""
        return fingerprint([self._source.sha256(), *(caption or "" for caption in self._texts)])


def _whole(caption: str) -> str:
    """A caption that can be encoded: half a letter, a surrogate that JSON may hold without the other, is a "\ufffd"."""
    return caption.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


BESIDE = (
    "they are read from IMAGE.txt or IMAGE.json beside an image, from metadata.jsonl, .csv or .parquet with "
    f"{FILE_NAME}, or from a column of a table ({', '.join(NAMES)}; caption_column=NAME sets another)"
)
KEYED = "IMAGE.json or in metadata (IMAGE.txt has no columns)"
"""What columns are of."""


@dataclass(frozen=True)
class FolderCaptions:
    """What a folder has of captions."""

    texts: list[str | None]
    """Of each image, None where there is none."""
    files: list[str]
    """That they are from."""
    notes: list[str]
    """Remarks for the user."""


def of_folder(listing: Listing, images: Sequence[str], column: str | None) -> FolderCaptions:
    """The captions of a folder's images; of an image that has several in metadata, the last.

    Args:
        listing: The folder's files.
        images: Paths from the folder.
        column: Of metadata, or the key in IMAGE.json; None for a usual name, or for IMAGE.txt.

    Raises:
        UserError: A metadata file that cannot be read, or no caption in a given column.
    """
    captions: dict[str, list[str]] = {}
    several: set[str] = set()
    used: list[str] = []
    notes: list[str] = []
    for file in listing.others:
        folder, name = posixpath.split(file)
        stem, suffix = posixpath.splitext(name)
        if stem == "metadata" and suffix in METADATA_READERS:
            for image, listed in _of_metadata(listing.root / file, folder, column):
                if captions.setdefault(image, listed) != listed:
                    several.add(image)
                captions[image] = listed
            used.append(file)
    if missing := sorted(captions.keys() - {*listing.images}):
        notes.append(f"missing: {counted(missing)} images that {', '.join(map(printable, used))} names")
    stems = _by_stem(listing.others, (".txt", ".json") if column is None else (".json",))
    beside = [stems.get(os.path.splitext(image)[0], []) for image in images]
    used += [file for files in beside for file in files]
    broken: list[str] = []
    cells = [captions.get(image) or _beside(listing.root, each, column, broken) for image, each in zip(images, beside)]
    texts, remarks = of_cells(cells)
    notes += [*remarks, *unread(broken)]
    if column is not None and not any(texts) and not broken:
        where = printable(str(listing.root))
        raise UserError(f"caption_column: none of {len(texts)} images in '{where}' has {column} in {KEYED}")
    if several:
        notes.insert(0, f"{len(several)} images have several captions in metadata; the last of each is taken")
    return FolderCaptions(texts, used, notes)


def _of_metadata(path: Path, folder: str, column: str | None) -> list[tuple[str, list[str]]]:
    """Paths of images, each with its captions; none where the table has no such columns."""
    where = printable(str(path))
    try:
        rows = METADATA_READERS[path.suffix](path)
    except UserError:
        raise
    except Exception as error:  # an untrusted file can be wrong in any way
        raise UserError(f"images: {where}: wanted captions, found a broken file ({error_line(error, 120)})") from error
    names = dict.fromkeys(name for row in rows for name in row)
    if FILE_NAME not in names or not {*(NAMES if column is None else (column,))} & names.keys():
        return []
    name = column_of(list(names), column, where)
    cells = [row.get(name) for row in rows]
    listed = [texts_of(str(cell) if path.suffix == ".csv" else cell) for cell in cells]  # 7 is a caption there, too
    paths = [posixpath.normpath(posixpath.join(folder, str(row.get(FILE_NAME)).replace("\\", "/"))) for row in rows]
    return [(path, captions) for path, captions in zip(paths, listed) if captions]


def _by_stem(files: Sequence[str], suffixes: Sequence[str]) -> dict[str, list[str]]:
    """The files that captions may be in, by what stands before their suffixes; the first with a caption is taken."""
    stems: dict[str, list[str]] = {}
    for wanted in suffixes:
        for stem, suffix in map(os.path.splitext, files):
            if suffix.lower() == wanted:
                stems.setdefault(stem, []).append(f"{stem}{suffix}")
    return stems


def _beside(root: Path, names: Sequence[str], column: str | None, broken: list[str]) -> list[str]:
    """The captions in the first of some files that has any; those that cannot be read are added to `broken`."""
    for name in names:
        try:
            texts = _of_file(root / name, column)
        except BrokenCaption as error:
            broken.append(f"{printable(name)}: {error}")
            continue
        if texts:
            return texts
    return []


def _of_file(file: Path, column: str | None) -> list[str]:
    if file.stat().st_size > MOST_BYTES:
        raise BrokenCaption(f"wanted {MOST_BYTES} bytes at most, found {file.stat().st_size}")
    data = file.read_bytes()
    if file.suffix.lower() == ".json":
        return of_json(data, column)
    return texts_of(data.decode("utf-8-sig", "replace"))
