"""Labels in a file beside the images: EDM's dataset.json, Hugging Face's metadata.csv, .jsonl or .parquet."""

import csv
import json
import posixpath
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from dit_shd.core.errors import UserError
from dit_shd.data.sources.base import needs
from dit_shd.data.sources.listing import Listing, counted, printable
from dit_shd.data.sources.parquet import LABEL_NAMES

EDM = "dataset.json"
NAMES = (EDM, "metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"
"""The column of Hugging Face's metadata."""


class LabelFiles:
    """What the label files of a folder say of its images.

    used: the files that say something, as paths from the folder; labels: of images, by their paths; none: one of them
    says that there are no labels; notes: what a user should know.

    Raises:
        UserError: a file that cannot be read, two that say different things of one image, or no such column.
    """

    def __init__(self, listing: Listing, images: Sequence[str], label_column: str | None):
        self.used: list[str] = []
        self.labels: dict[str, Any] = {}
        self.none = False
        self.notes: list[str] = []
        folders = {folder for image in images for folder in ancestors(image)}
        for file in listing.others:
            folder, name = posixpath.split(file)
            if name in NAMES and folder in folders:
                self._add(listing.root / file, file, folder, label_column)
        if label_column is not None and not self.used:
            raise UserError(
                f"label_column: wanted one of a table or of {', '.join(NAMES)}, found none in '{listing.root}'"
            )

    def _add(self, path: Path, file: str, folder: str, label_column: str | None) -> None:
        where = printable(str(path))
        try:
            entries = _edm(path) if path.name == EDM else _metadata(path, label_column)
        except UserError:
            raise
        except Exception as error:  # a stranger's file can be wrong in any way
            words = " ".join(str(error).split())[:120]
            raise UserError(f"images: {where}: wanted labels of images, found a broken file ({words})") from error
        if isinstance(entries, str):
            self.notes.append(f"{printable(file)} {entries}")
            return
        self.used.append(file)
        self.none |= entries is None
        for name, label in entries or ():
            image = posixpath.normpath(posixpath.join(folder, name.replace("\\", "/")))
            if self.labels.setdefault(image, label) != label:
                raise UserError(
                    f"images: {where}: wanted one label for {printable(image)}, found {self.labels[image]} and {label}"
                )
        if self.none and self.labels:
            raise UserError(f"images: wanted labels in one file, found {', '.join(map(printable, self.used))}")


def ancestors(image: str) -> list[str]:
    """The folders that an image is in, "" the first."""
    parts = image.split("/")[:-1]
    return ["/".join(parts[:depth]) for depth in range(len(parts) + 1)]


def _edm(path: Path) -> list[tuple[str, Any]] | str | None:
    """Names and labels of `{"labels": [[file, label], ...]}`; None: there are none; a text: why it is no such file."""
    told = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(told, dict) or "labels" not in told:
        return "has no labels and is not used"
    labels = told["labels"]
    if labels is None:
        return None
    entries = list(labels.items()) if isinstance(labels, dict) else [tuple(entry) for entry in labels]
    for entry in entries:
        if len(entry) != 2 or not isinstance(entry[0], str) or type(entry[1]) not in (int, str):
            raise ValueError(f"wanted [file, whole number] throughout, found {printable(str(list(entry))[:60])}")
    return entries


def _metadata(path: Path, label_column: str | None) -> list[tuple[str, Any]] | str:
    """The same of columns of a table; a text: it has no labels, so that class folders count."""
    rows = _READERS[path.suffix](path)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if FILE_NAME not in columns:
        return f"has no column {FILE_NAME} and is not used"
    wanted = LABEL_NAMES if label_column is None else (label_column,)
    label = next((name for name in wanted if name in columns), None)
    if label is None and label_column is not None:
        raise UserError(
            f"label_column: {printable(str(path))} has no column {label_column}, it has {', '.join(columns)[:200]}"
        )
    if label is None:
        return f"has no column of labels ({', '.join(LABEL_NAMES)}; label_column=NAME says another) and is not used"
    if any(not isinstance(row.get(FILE_NAME), str) or row.get(label) in (None, "") for row in rows):
        raise ValueError(f"a row without {FILE_NAME} or {label}")
    return [(row[FILE_NAME], row[label]) for row in rows]


def _csv(path: Path) -> list[dict[str, Any]]:
    """Rows of texts; a column that holds nothing but whole numbers holds numbers."""
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream, strict=True))
    for name in rows[0] if rows else ():
        if name != FILE_NAME and all(re.fullmatch(r"0|-?[1-9]\d{0,17}", row[name] or "") for row in rows):
            for row in rows:
                row[name] = int(row[name])
    return rows


def _jsonl(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line that is no object")
    return rows


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise needs("pyarrow") from error
    names = pyarrow.parquet.read_schema(path).names
    return pyarrow.parquet.read_table(path, columns=[name for name in names if name != "image"]).to_pylist()


_READERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}


def matched(
    found: LabelFiles, images: Sequence[str], there: Collection[str], where: str
) -> tuple[list[str], list[Any], list[str]]:
    """The images that have a label, their labels, and notes on the others.

    Args:
        there: all images, those of other splits among them.

    Raises:
        UserError: none of them has a label.
    """
    files = ", ".join(map(printable, found.used))
    kept = [image for image in images if image in found.labels]
    if not kept:
        first = printable(next(iter(found.labels), "nothing"))
        raise UserError(f"images: '{where}': {files} names none of the images that are there, but {first}")
    unnamed, missing = sorted({*images} - {*kept}), sorted({*found.labels} - {*there})
    notes = [f"labels are those of {files}"]
    if unnamed:
        notes.append(f"left out: {counted(unnamed)} images that {files} does not name")
    if missing:
        notes.append(f"not there: {counted(missing)} images that {files} names")
    return kept, [found.labels[image] for image in kept], notes
