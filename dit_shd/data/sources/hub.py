"""Hugging Face datasets: a folder that `save_to_disk` wrote, or a name on the hub."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dit_shd.core.errors import UserError
from dit_shd.core.places import HubName, one_line
from dit_shd.data.sources.base import Asked, ImageSource, fingerprint, needs
from dit_shd.data.sources.parquet import Columns, image_bytes
from dit_shd.data.sources.splits import DEFAULT


def is_saved(folder: Path) -> bool:
    """`Dataset.save_to_disk` or `DatasetDict.save_to_disk` was here."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


class HubImages(ImageSource):
    """One split of a dataset with an image and a label column; memory-mapped by the datasets package.

    Raises:
        UserError: no datasets package, no such dataset, split or column.
    """

    def __init__(self, place: Path | HubName, asked: Asked):
        self._text = text = str(place)
        data = _load(place, asked).with_format(None)  # a saved set may say that its rows are tensors
        self._columns = Columns.find(data.features.arrow_schema, asked.image_column, asked.label_column, text)
        try:
            self._images = data.select_columns([self._columns.image])
            if type(data.features[self._columns.image]).__name__ == "Image":
                from datasets import Image

                self._images = self._images.cast_column(self._columns.image, Image(decode=False))
            values = data[self._columns.label][:] if self._columns.label else []
        except Exception as error:  # a stranger's files can be wrong in any way
            raise _unreadable(text, error) from error
        self.labels, self.classes, self.notes = self._columns.labels(list(values), len(data), text)
        self._fingerprint = str(data._fingerprint)

    def raw(self, number: int) -> bytes:
        try:
            cell = self._images[number][self._columns.image]
        except Exception as error:
            raise _unreadable(self._text, error) from error
        return image_bytes(cell)

    def name(self, number: int) -> str:
        return f"{self._text}[{number}]"

    def sha256(self) -> str:
        return fingerprint([self._fingerprint, str(self._columns), self.labels.tobytes()])


def _load(place: Path | HubName, asked: Asked) -> Any:
    text = str(place)
    reached = not isinstance(place, HubName) or place.files() is not None
    if asked.subset is not None and not isinstance(place, HubName):
        raise UserError(f"subset: wanted none for a saved dataset, '{text}', found {asked.subset}")
    try:
        import datasets
    except ImportError as error:
        raise needs("datasets") from error
    try:
        if not isinstance(place, HubName):
            data = datasets.load_from_disk(text)
        elif reached:
            data = datasets.load_dataset(place.repository, asked.subset, revision=place.revision)
        else:
            with _offline():
                data = datasets.load_dataset(place.repository, asked.subset, revision=place.revision)
    except Exception as error:
        if not reached and isinstance(place, HubName):
            raise UserError(f"images: {place.unreachable()}") from error
        raise _unreadable(text, error) from error
    if not isinstance(data, datasets.DatasetDict):
        if asked.split not in (None, str(data.split)):
            raise UserError(f"split: '{text}' is one split ({data.split}), and not {asked.split}; leave out split=")
        return data
    split = asked.split or DEFAULT
    if split not in data:
        raise UserError(f"split: '{text}' has no split '{split}', it has {', '.join(map(str, data))}")
    return data[split]


@contextmanager
def _offline() -> Generator[None]:
    """What is in the local cache is found without asking the hub again and again."""
    from datasets import config
    from huggingface_hub import constants

    places: list[Any] = [config, constants]
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before):
            place.HF_HUB_OFFLINE = value


def _unreadable(text: str, error: Exception) -> UserError:
    return UserError(f"images: '{text}' cannot be read by the datasets package ({one_line(error)})")
