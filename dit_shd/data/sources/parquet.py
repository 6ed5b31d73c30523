"""Parquet files with a column of encoded images and one of labels, read row group by row group."""

import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from dit_shd.core.errors import UserError, error_line
from dit_shd.data.npz_files import MAX_EXPANSION
from dit_shd.data.sources import caption_cells
from dit_shd.data.sources.base import (
    NO_LABELS,
    ONE_ALONE,
    BrokenImage,
    ChoiceError,
    ImageSource,
    Labelled,
    Selection,
    SequentialRows,
    checked_labels,
    fingerprint,
    missing_package,
    not_used,
    one_class,
)
from dit_shd.data.sources.classes import from_values
from dit_shd.data.sources.listing import Listing

IMAGE_NAMES = ("image", "img", "jpg", "png", "webp")
LABEL_NAMES = ("label", "labels", "cls", "class", "fine_label")
ROWS = 16
"""Number of rows that are read at once."""


class Schema(Protocol):
    """What is read of pyarrow's Schema, which has no type stubs."""

    names: Sequence[str]
    metadata: Mapping[bytes, bytes] | None


@dataclass(frozen=True)
class Columns:
    """The columns of an Arrow schema that hold images and labels."""

    image: str
    label: str | None
    names: tuple[str, ...] | None
    """Class names, from Hugging Face's metadata."""
    guessed: bool = field(default=False, repr=False)
    """Whether the column of labels was found by its kind alone."""

    @classmethod
    def find(cls, schema: Schema, image: str | None, label: str | None, where: str) -> "Columns":
        """The columns by name, or those with usual names, or else the only ones that Hugging Face says are such.

        Args:
            schema: The Arrow schema.
            image: Name of the column of images.
            label: Name of the column of labels.
            where: The file or data set, for errors.

        Raises:
            UserError: No such column.
        """
        image = _choose(schema.names, image or _only(schema, IMAGE_NAMES, "Image"), IMAGE_NAMES, "image_column", where)
        guess = _only(schema, LABEL_NAMES, "ClassLabel") if label is None else None
        label = label or guess
        if label is None and not set(LABEL_NAMES) & set(schema.names):
            return cls(image, None, None)
        label = _choose(schema.names, label, LABEL_NAMES, "label_column", where)
        return cls(image, label, _class_names(schema, label), guess is not None)

    def labels(self, values: Sequence[Any], count: int, where: str) -> Labelled:
        """Labels int64 [n], class names and notes; `values` is the label column, whole numbers or texts."""
        if self.label is None:
            return *checked_labels(*one_class(count), where), [NO_LABELS]
        without = sum(value is None or value == -1 for value in values) if self.guessed else 0
        if without:
            note = f"column {self.label} is of classes, has none for {without} images, and is not used"
            return *checked_labels(*one_class(count), where), [note, NO_LABELS]
        return from_values(values, self.names, f"{where}', column '{self.label}")

    def read(self, values: Sequence[Any], count: int, where: str, selection: Selection) -> "tuple[Columns, Labelled]":
        """The columns with their labels, as `labels` has them; without a column of labels that is not sound nor needed.

        Raises:
            UserError: It is not sound, and is needed.
        """
        try:
            return self, self.labels(values, count, where)
        except UserError as error:
            if selection.needs_labels or not count:
                raise
            return Columns(self.image, None, None), (*one_class(count), [not_used(error)])


def image_bytes(cell: object) -> bytes:
    """The encoded image in a cell: bytes, or Hugging Face's {bytes, path}; a path is not followed.

    Raises:
        BrokenImage: The cell holds no bytes.
    """
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if isinstance(data, bytes) and data:
        return data
    raise BrokenImage("an empty cell" if cell is None else "no bytes of an image (paths in cells are not followed)")


def tables_of(listing: Listing, image_column: str | None) -> list[str]:
    """The Parquet files of a folder, if the first has a column of images or there are no images nor tars beside them.

    img2dataset writes a table of captions beside each tar.

    Raises:
        UserError: A damaged file.
    """
    files = [path for path in listing.others if path.lower().endswith(".parquet")]
    files = [path for path in files if os.path.basename(path) != "metadata.parquet"] or files
    tars = any(path.lower().endswith(".tar") for path in listing.others)
    if not files or not (listing.images or tars):
        return files
    schema = _Table(listing.root / files[0]).file.schema_arrow
    wanted = {*IMAGE_NAMES, _only(schema, IMAGE_NAMES, "Image")} if image_column is None else {image_column}
    return files if wanted & {*schema.names} else []


class ParquetImages(ImageSource):
    """The rows of Parquet files.

    Args:
        files: The files, in order.
        text: The source in the user's words, for errors.
        selection: Which columns to read.

    Raises:
        UserError: No pyarrow, no such columns, a damaged file.
    """

    def __init__(self, files: Sequence[Path], text: str, selection: Selection) -> None:
        self._files, self._text = [_Table(file) for file in files], text
        self._firsts = [0, *accumulate(table.count for table in self._files)]
        self._columns, (self.labels, self.classes, self.notes) = self._labelled(selection)
        self._groups = [
            (first + offset, table, group)
            for first, table in zip(self._firsts, self._files)
            for group, offset in enumerate(table.offsets)
        ]
        self._starts = [first for first, _, _ in self._groups]
        self._rows = SequentialRows(lambda number: self._starts[self._group(number)], self._read)

    def _labelled(self, selection: Selection) -> tuple[Columns, Labelled]:
        """The columns of all files, and what the one of labels holds."""
        columns = _common_columns(self._files, self._text, selection)
        values = [value for table in self._files for value in table.column(columns.label)]
        return columns.read(values, self._firsts[-1], self._text, selection)

    def _group(self, number: int) -> int:
        return bisect_right(self._starts, number) - 1

    def _read(self, first: int) -> Iterator[Any]:
        for _, table, group in self._groups[self._group(first) :]:
            yield from table.rows(group, self._columns.image)

    def raw(self, number: int) -> bytes:
        """The encoded image."""
        return image_bytes(self._rows[number])

    def name(self, number: int) -> str:
        """File and row."""
        index = bisect_right(self._firsts, number) - 1
        return f"{self._files[index].path.name}[{number - self._firsts[index]}]"

    def texts(self, column: str | None) -> list[str | None]:
        names = [caption_cells.column_of(t.file.schema_arrow.names, column, str(t.path)) for t in self._files]
        cells = [cell for table, name in zip(self._files, names) for cell in table.column(name)]
        texts, notes = caption_cells.of_cells(cells)
        self._add_notes(notes)
        return texts

    def sha256(self) -> str:
        """Hash of the files' names and sizes, the columns and the labels."""
        files = (f"{table.path.name} {table.path.stat().st_size}" for table in self._files)
        return fingerprint([*files, str(self._columns), self.labels.tobytes()])


def _common_columns(tables: Sequence["_Table"], where: str, selection: Selection) -> Columns:
    """The columns of all tables.

    Raises:
        UserError: Tables of other columns, or with other class names, so that numbers have other meanings.
    """
    image, label = selection.image_column, selection.label_column
    all_columns = [Columns.find(table.file.schema_arrow, image, label, where) for table in tables]
    common = all_columns[0]
    if not selection.needs_labels and {columns.image for columns in all_columns} == {common.image}:
        return common if all(columns == common for columns in all_columns) else Columns(common.image, None, None)
    for table, columns in zip(tables, all_columns):
        if columns != common:
            first, what = tables[0].path.name, "columns"
            one, other = (f"{c.image}, {c.label or 'no labels'}" for c in (common, columns))
            if (columns.image, columns.label) == (common.image, common.label):
                what = f"names of classes in column {columns.label}"
                one, other = (", ".join(c.names or ["none"])[:80] for c in (common, columns))
            raise UserError(
                f"images: '{where}': wanted the same {what} in all Parquet files, found {one} in {first} and "
                f"{other} in {table.path.name}; encode them separately, or make them agree"
            )
    return common


class _Table:
    """One Parquet file; any fault of it is a UserError."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise missing_package("pyarrow") from error
        self.path = path
        try:
            self.file = pyarrow.parquet.ParquetFile(path)
            groups = [self.file.metadata.row_group(i).num_rows for i in range(self.file.num_row_groups)]
        except Exception as error:
            raise self._broken(error) from error
        self.offsets = [0, *accumulate(groups)][:-1]
        self.count = sum(groups)

    def column(self, name: str | None) -> list[Any]:
        try:
            return [] if name is None else self.file.read(columns=[name]).column(name).to_pylist()
        except Exception as error:
            raise self._broken(error) from error

    def rows(self, group: int, column: str) -> Iterator[Any]:
        metadata = self.file.metadata.row_group(group)
        chunks = [metadata.column(i) for i in range(metadata.num_columns)]
        for chunk in (chunk for chunk in chunks if chunk.path_in_schema.startswith(column)):
            if chunk.total_uncompressed_size > MAX_EXPANSION * max(chunk.total_compressed_size, 2**20):
                raise self._broken(ValueError(f"column {column} expands to more than {MAX_EXPANSION} times its size"))
        try:
            for batch in self.file.iter_batches(ROWS, row_groups=[group], columns=[column], use_threads=False):
                yield from batch.column(0).to_pylist()
        except Exception as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> UserError:
        return UserError(f"images: {self.path}: not a readable Parquet file ({error_line(error, 120)})")


def _choose(columns: Sequence[str], given: str | None, usual: Sequence[str], key: str, where: str) -> str:
    names = usual if given is None else (given,)
    column = next((name for name in names if name in columns), None)
    if column is None:
        known = ", ".join(columns)[:200]
        line = f"'{where}' has no column {' or '.join(names)}, it has {known}"
        raise ChoiceError(key, line, elsewhere=f"rename the column, or {ONE_ALONE}")
    return column


def _only(schema: Schema, usual: Sequence[str], kind: str) -> str | None:
    """The only column of a kind of the datasets package; None where another has a usual name."""
    if set(usual) & set(schema.names):
        return None
    columns = [name for name in schema.names if _feature(schema, name).get("_type") == kind]
    return columns[0] if len(columns) == 1 else None


def _class_names(schema: Schema, label: str) -> tuple[str, ...] | None:
    try:
        names = _feature(schema, label).get("names")
        return tuple(map(str, names)) if names else None
    except TypeError:
        return None


def _feature(schema: Schema, column: str) -> dict[str, Any]:
    """What the datasets package says of a column; empty where it says nothing."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        return feature if isinstance(feature, dict) else {}
    except (ValueError, KeyError, TypeError):
        return {}
