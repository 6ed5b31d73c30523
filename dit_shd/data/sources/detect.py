"""Which reader a source of images is for."""

from pathlib import Path

from dit_shd.core.errors import UserError
from dit_shd.core.file_kinds import NPZ, PARQUET, file_kind
from dit_shd.core.places import WANTED, HubName, find
from dit_shd.data.sources import folder, hub, npz, parquet, splits
from dit_shd.data.sources.base import Asked, ImageSource
from dit_shd.data.sources.listing import counted, scan


def open_source(text: str, asked: Asked | None = None) -> ImageSource:
    """What a user means by `text`: a folder of images or Parquet files, an npz, a saved dataset, hub:OWNER/NAME.

    Raises:
        UserError: there is no such thing, or there are no images in it.
    """
    path, asked = find(text, "images", "images"), asked or Asked()
    if isinstance(path, HubName):
        return hub.HubImages(path, asked)
    assert isinstance(path, Path)
    if path.is_dir():
        return hub.HubImages(path, asked) if hub.is_saved(path) else open_folder(path, text, asked)
    if path.is_file():
        for key in ("split", "subset"):
            if getattr(asked, key) is not None:
                raise UserError(f"{key}: wanted none for a single file, '{text}', found {getattr(asked, key)}")
        kind = file_kind(path)
        if kind == NPZ or path.suffix.lower() == ".npz":
            return npz.NpzSource(path)
        if kind == PARQUET or path.suffix.lower() == ".parquet":
            return parquet.ParquetImages([path], text, asked)
    raise UserError(f"images: wanted {WANTED['images']}, found {file_kind(path)} at '{text}'")


def open_folder(path: Path, text: str, asked: Asked) -> ImageSource:
    """Tables with a column of images win over pictures beside them, and pictures over other tables; both are told."""

    found = scan(path, asked.follow_links)
    tables = parquet.tables_of(found, asked.image_column)
    if tables:
        chosen, notes = splits.tables_of_split(tables, path, asked.split, asked.subset, text)
        source = parquet.ParquetImages([path / file for file in chosen], text, asked)
        if found.images:
            notes.append(f"left out: {counted(found.images)} images beside tables")
        source.notes = [*source.notes, *notes, *found.notes(tables)]
        return source
    if not found.images:
        raise UserError(f"images: wanted images or Parquet files in '{text}', found none ({found.told()})")
    if asked.subset is not None:
        raise UserError(f"subset: wanted none for a folder of images, '{text}', found {asked.subset}")
    return folder.FolderSource(found, asked.split, asked.label_column)
