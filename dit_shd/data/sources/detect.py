"""Which reader a source of images is read by."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from dit_shd.core.errors import UserError
from dit_shd.core.file_kinds import NPZ, PARQUET, file_kind
from dit_shd.core.names import counted
from dit_shd.core.places import WANTED, HubName, find
from dit_shd.core.run_files import RUN_CONFIG, STUDENT
from dit_shd.data.sources import folder, hub, npz, parquet, splits, webdataset
from dit_shd.data.sources.base import ImageSource, Selection
from dit_shd.data.sources.listing import scan


def open_source(text: str, selection: Selection | None = None) -> ImageSource:
    """Open a source of images.

    Args:
        text: A folder of images or Parquet files, an npz, a saved dataset, or hub:OWNER/NAME.
        selection: Which part of it to read.

    Raises:
        UserError: There is no such source, or there are no images in it.
    """
    path, selection = find(text, "images", "images"), selection or Selection()
    if isinstance(path, HubName):
        return hub.HubImages(path, selection)
    assert isinstance(path, Path)
    refuse_run(path, text, "images")
    if path.is_dir():
        return hub.HubImages(path, selection) if hub.is_saved(path) else open_folder(path, text, selection)
    if path.is_file():
        _refuse(selection, ("split", "subset"), "a single file", text)
        kind = file_kind(path)
        if kind == NPZ or path.suffix.lower() == ".npz":
            _refuse(selection, ("image_column", "label_column"), "an npz", text)
            return npz.NpzSource(path)
        if kind == PARQUET or path.suffix.lower() == ".parquet":
            return parquet.ParquetImages([path], text, selection)
        if path.suffix.lower() == webdataset.TAR:
            _refuse(selection, ("label_column",), "tars, whose labels are in KEY.cls", text)
            return webdataset.TarImages({path.name: path}, text, selection)
    raise UserError(f"images: wanted {WANTED['images']}, found {file_kind(path)} at '{text}'")


def refuse_run(path: Path, text: str, what: str) -> None:
    """Refuse a run folder, in which what looks like images are grids of samples and figures.

    Args:
        path: The place.
        text: As the user named it.
        what: The option, for the error.

    Raises:
        UserError: Naming its newest samples.
    """
    if not ((path / RUN_CONFIG).is_file() and (path / STUDENT).is_dir()):
        return
    samples = sorted(path.glob("samples_*.npz"), key=lambda file: file.stat().st_mtime)
    remedy = (
        f"give its samples, {samples[-1]}" if samples else f"make samples first: dit-shd sample {shlex.quote(text)}"
    )
    raise UserError(f"{what}: {text} is a run; {remedy}")


def is_packed(path: Path) -> bool:
    """Whether a file or folder holds images in tables, tars or a saved dataset, and not in files of their own."""
    if not path.is_dir():
        return path.suffix.lower() in (".parquet", webdataset.TAR) or file_kind(path) == PARQUET
    listing = scan(path, follow_links=True)
    return hub.is_saved(path) or bool(parquet.tables_of(listing, None) or webdataset.tars_of(listing))


def open_folder(path: Path, text: str, selection: Selection) -> ImageSource:
    """Open a folder.

    Tables with a column of images take precedence over image files beside them, and image files over other tables;
    notes say what was left out.

    Args:
        path: The folder.
        text: The folder in the user's words.
        selection: Which part of it to read.

    Raises:
        UserError: There are no images in it.
    """
    listing = scan(path, selection.follow_links)
    tables = parquet.tables_of(listing, selection.image_column)
    if tables:
        chosen, notes = splits.tables_of_split(tables, path, selection.split, selection.subset, text)
        source = parquet.ParquetImages([path / file for file in chosen], text, selection)
        if listing.images:
            notes.append(f"left out: {counted(listing.images)} images beside tables")
        source.notes = [*source.notes, *notes, *listing.notes(tables)]
        return source
    tars = webdataset.tars_of(listing)
    if tars:
        _refuse(selection, ("subset",), "a folder of tars", text)
        _refuse(selection, ("label_column",), "tars, whose labels are in KEY.cls", text)
        taken = webdataset.tars_of_split(tars, selection.split, text)
        source = webdataset.TarImages({file: path / file for file in taken}, text, selection)
        others = [f"left out: tars of other splits: {counted(left)}"] if (left := sorted({*tars} - {*taken})) else []
        source.notes = [*source.notes, *others, *listing.notes(tars)]
        return source
    if not listing.images:
        raise UserError(f"images: wanted images, tars or Parquet files in '{text}', found none ({listing.summary()})")
    _refuse(selection, ("subset", "image_column"), "a folder of images", text)
    return folder.FolderSource(listing, selection)


def _refuse(selection: Selection, keys: Sequence[str], what: str, text: str) -> None:
    """Refuse values of keys that such a source has no use for.

    Raises:
        UserError: Naming the key, the kind of source and the value.
    """
    for key in keys:
        if getattr(selection, key) is not None:
            raise UserError(f"{key}: wanted none for {what}, '{text}', found {getattr(selection, key)}")
