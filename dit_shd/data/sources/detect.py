"""Which reader a source of images is for."""

from pathlib import Path

from dit_shd.core.errors import UserError
from dit_shd.core.places import WANTED, HubName, find
from dit_shd.data.sources import folder, hub, npz, parquet
from dit_shd.data.sources.base import ImageSource


def open_source(
    text: str,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    follow_links: bool = False,
) -> ImageSource:
    """What a user means by `text`: a folder of images or Parquet files, an npz, a saved dataset, hub:OWNER/NAME.

    Raises:
        UserError: there is no such thing, or there are no images in it.
    """
    path = find(text, "images", "images")
    if isinstance(path, HubName):
        return hub.HubImages(path, split, image_column, label_column)
    assert isinstance(path, Path)
    if path.is_dir():
        if hub.is_saved(path):
            return hub.HubImages(path, split, image_column, label_column)
        found = folder.scan(path, follow_links)
        if found.images:
            return folder.FolderImages(found)
        tables = [file for file in found.others if file.endswith(".parquet")]
        if tables:
            chosen = parquet.of_split([path / file for file in tables], split, text)
            return parquet.ParquetImages(chosen, text, image_column, label_column)
        raise UserError(f"images: wanted images or Parquet files in '{text}', found none ({found.told()})")
    if path.is_file():
        if path.suffix == ".npz":
            return npz.NpzSource(path)
        if path.suffix == ".parquet":
            return parquet.ParquetImages([path], text, image_column, label_column)
    raise UserError(f"images: wanted {WANTED['images']}, found another kind of file at '{text}'")
