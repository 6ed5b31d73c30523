"""Files of labels beside the images: EDM's dataset.json, Hugging Face's metadata.csv, .jsonl or .parquet."""

import csv
import json
import posixpath
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from dit_shd.core.errors import UserError, error_line
from dit_shd.core.names import counted, printable
from dit_shd.data.sources.base import missing_package
from dit_shd.data.sources.listing import Listing
from dit_shd.data.sources.parquet import LABEL_NAMES

EDM = "dataset.json"
NAMES = (EDM, "metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"
"""The column of Hugging Face's metadata."""


class LabelFiles:
    """The label files of a folder.

    Args:
        listing: The folder's files.
        images: The images that labels are wanted for; only label files beside them or above are read.
        label_column: The column of labels in a table; a usual name if None.

    Raises:
        UserError: A file that cannot be read, two labels for one image, or no such column.
    """

    def __init__(self, listing: Listing, images: Sequence[str], label_column: str | None) -> None:
        self.used: list[str] = []
        """The files with labels, as paths from the folder."""
        self.labels: dict[str, Any] = {}
        """Labels by the images' paths."""
        self.none = False
        """Whether one of the files records that there are no labels."""
        self.unused: dict[str, str] = {}
        """Why others have no labels, by their paths from the folder."""
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
        except Exception as error:  # an untrusted file can be wrong in any way
            what = "labels" if path.name == EDM else "labels or captions"
            reason = error_line(error, 120)
            raise UserError(f"images: {where}: wanted {what} of images, found a broken file ({reason})") from error
        if isinstance(entries, str):
            self.unused[file] = entries
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
    """The folders that an image is in, from "" downwards."""
    folders = image.split("/")[:-1]
    return ["/".join(folders[:depth]) for depth in range(len(folders) + 1)]


def _edm(path: Path) -> list[tuple[str, Any]] | str | None:
    """Names and labels of `{"labels": [[file, label], ...]}`; None: there are none; a text: why it is no such file."""
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(content, dict) or "labels" not in content:
        return "has no labels and is not used"
    labels = content["labels"]
    if labels is None:
        return None
    entries = list(labels.items()) if isinstance(labels, dict) else [tuple(entry) for entry in labels]
    for entry in entries:
        if len(entry) != 2 or not isinstance(entry[0], str) or type(entry[1]) not in (int, str):
            raise ValueError(f"wanted [file, whole number] throughout, found {printable(str(list(entry))[:60])}")
    return entries


def _metadata(path: Path, label_column: str | None) -> list[tuple[str, Any]] | str:
    """Names and labels in columns of a table; a text: why it has no labels, so that class folders are used."""
    rows = METADATA_READERS[path.suffix](path)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if FILE_NAME not in columns:
        return f"has no column {FILE_NAME} and is not used"
    label_names = LABEL_NAMES if label_column is None else (label_column,)
    label = next((name for name in label_names if name in columns), None)
    if label is None and label_column is not None:
        raise UserError(
            f"label_column: {printable(str(path))} has no column {label_column}, it has {', '.join(columns)[:200]}"
        )
    if label is None:
        return f"has no column of labels ({', '.join(LABEL_NAMES)}; label_column=NAME sets another) and is not used"
    if any(not isinstance(row.get(FILE_NAME), str) or row.get(label) in (None, "") for row in rows):
        raise ValueError(f"a row without {FILE_NAME} or {label}")
    labels = [row[label] for row in rows]
    return list(zip((row[FILE_NAME] for row in rows), _numbers(labels) if path.suffix == ".csv" else labels))


def _numbers(cells: list[Any]) -> list[Any]:
    """Cells of a CSV, as whole numbers if all are written as 10.0, as pandas does once an empty cell was among them."""
    if not all(isinstance(cell, str) and re.fullmatch(r"-?\d{1,15}\.0*", cell) for cell in cells):
        return cells
    return [int(float(cell)) for cell in cells]


def _csv(path: Path) -> list[dict[str, Any]]:
    """Rows of texts; columns that hold only whole numbers are converted to numbers."""
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream, strict=True))
    if any(None in row or None in row.values() for row in rows):
        raise ValueError("a row with more or fewer cells than the head has names: quote texts with commas")
    for name in rows[0] if rows else ():
        if name != FILE_NAME and all(re.fullmatch(r"0|-?[1-9]\d{0,17}", row[name] or "") for row in rows):
            for row in rows:
                row[name] = int(row[name])
    return rows


def _jsonl(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line that is no object")
    return rows


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise missing_package("pyarrow") from error
    names = pyarrow.parquet.read_schema(path).names
    return pyarrow.parquet.read_table(path, columns=[name for name in names if name != "image"]).to_pylist()


METADATA_READERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}


def matched(
    label_files: LabelFiles, images: Sequence[str], all_images: Collection[str], where: str
) -> tuple[list[str], list[Any], list[str]]:
    """The images that have a label, their labels, and notes on the others.

    Args:
        label_files: The labels.
        images: The images of one split.
        all_images: The images of all splits.
        where: The folder, for errors.

    Raises:
        UserError: None of the images has a label.
    """
    files = ", ".join(map(printable, label_files.used))
    labelled = [image for image in images if image in label_files.labels]
    if not labelled:
        first = printable(next(iter(label_files.labels), "nothing"))
        raise UserError(f"images: '{where}': {files} names none of the images in the folder, but {first}")
    unlabelled, missing = sorted({*images} - {*labelled}), sorted({*label_files.labels} - {*all_images})
    notes = [f"labels are those of {files}"]
    if unlabelled:
        notes.append(f"left out: {counted(unlabelled)} images that {files} does not name")
    if missing:
        notes.append(f"missing: {counted(missing)} images that {files} names")
    return labelled, [label_files.labels[image] for image in labelled], notes
