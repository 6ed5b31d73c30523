"""Hugging Face datasets: a folder that `save_to_disk` wrote, or a name on the hub."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from dit_shd.core.errors import UserError, error_line
from dit_shd.core.places import HubName, offline
from dit_shd.data.sources import caption_cells
from dit_shd.data.sources.base import ImageSource, Selection, fingerprint, missing_package
from dit_shd.data.sources.parquet import Columns, image_bytes
from dit_shd.data.sources.splits import DEFAULT

if TYPE_CHECKING:
    from datasets import Dataset


def is_saved(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote the folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


class HubImages(ImageSource):
    """One split of a dataset with an image and a label column; memory-mapped by the datasets package.

    Args:
        place: The folder, or the name on the hub.
        selection: Which part of the dataset to read.

    Raises:
        UserError: No datasets package, no such dataset, split or column.
    """

    def __init__(self, place: Path | HubName, selection: Selection) -> None:
        self._text = text = str(place)
        data = _load(place, selection).with_format(None)  # a saved set may return tensors
        columns = selection.image_column, selection.label_column
        self._columns = Columns.find(data.features.arrow_schema, *columns, text)
        try:
            self._images = data.select_columns([self._columns.image])
            if type(data.features[self._columns.image]).__name__ == "Image":
                from datasets import Image

                self._images = self._images.cast_column(self._columns.image, Image(decode=False))
            values = data[self._columns.label][:] if self._columns.label else []
        except Exception as error:  # an untrusted file can be wrong in any way
            raise _unreadable(text, error) from error
        self._columns, labelled = self._columns.read(list(values), len(data), text, selection)
        self.labels, self.classes, self.notes = labelled
        self._fingerprint, self._data = str(data._fingerprint), data

    def raw(self, number: int) -> bytes:
        """The encoded image."""
        try:
            cell = self._images[number][self._columns.image]
        except Exception as error:
            raise _unreadable(self._text, error) from error
        return image_bytes(cell)

    def name(self, number: int) -> str:
        """Dataset and row."""
        return f"{self._text}[{number}]"

    def texts(self, column: str | None) -> list[str | None]:
        name = caption_cells.column_of(self._data.column_names, column, self._text)
        try:
            cells = list(self._data[name][:])
        except Exception as error:  # an untrusted file can be wrong in any way
            raise _unreadable(self._text, error) from error
        texts, notes = caption_cells.of_cells(cells)
        self._add_notes(notes)
        return texts

    def sha256(self) -> str:
        """Hash of the datasets package's fingerprint, the columns and the labels."""
        return fingerprint([self._fingerprint, str(self._columns), self.labels.tobytes()])


def _load(place: Path | HubName, selection: Selection) -> "Dataset":
    text, subset = str(place), selection.subset
    reached = not isinstance(place, HubName) or place.files() is not None
    if subset is not None and not isinstance(place, HubName):
        raise UserError(f"subset: wanted none for a saved dataset, '{text}', found {subset}")
    try:
        import datasets
    except ImportError as error:
        raise missing_package("datasets") from error
    try:
        if isinstance(place, HubName):
            with nullcontext() if reached else offline():
                data = datasets.load_dataset(place.repository, subset, revision=place.revision)
        else:
            data = datasets.load_from_disk(text)
    except Exception as error:
        if not reached and isinstance(place, HubName):
            raise UserError(f"images: {place.unreachable()}") from error
        raise _unreadable(text, error) from error
    if not isinstance(data, datasets.DatasetDict):
        if selection.split not in (None, str(data.split)):
            raise UserError(f"split: '{text}' is one split ({data.split}), not {selection.split}; leave out split=")
        return data
    split = selection.split or DEFAULT
    if split not in data:
        raise UserError(f"split: '{text}' has no split '{split}', it has {', '.join(map(str, data))}")
    return data[split]


def _unreadable(text: str, error: Exception) -> UserError:
    return UserError(f"images: '{text}' cannot be read by the datasets package ({error_line(error)})")
