"""A set of images by its name or path: a dataset, an npz file, shards, a folder, tables or tars."""

import json
from pathlib import Path

from dit_shd.core.errors import UserError
from dit_shd.core.places import find
from dit_shd.core.plugins import Plugin
from dit_shd.data.datasets import DATASETS
from dit_shd.data.image_folders import FolderImages, ShardImages, SourceImages
from dit_shd.data.image_sets import ArrayImages, ImageSet, NpzImages
from dit_shd.data.sources.base import ChoiceError, ImageSource, Selection
from dit_shd.data.sources.detect import is_packed, open_source, refuse_run
from dit_shd.data.sources.splits import DEFAULT

FOLLOWED = Selection(follow_links=True)


def open_images(text: str, what: str, crop: tuple[int, ...] | None = None, lenient: bool = False) -> ImageSet:
    """Open a set of images.

    Args:
        text: A dataset (`digits`, `digits:validation`), an npz file, a folder of images or of a sampling's shards, or
            Parquet files, tars or a saved dataset, as `dit-shd encode` reads them. A dataset's name takes precedence
            over a file of that name; `./digits` is the file.
        what: The config key, for errors.
        crop: Size (y, x, c) of the centre crop of stored images, as `dit-shd encode` makes it; None for none.
        lenient: Whether broken files are left out and noted, as `dit-shd encode` does; else they are an error.

    Raises:
        UserError: There is no such dataset, file or folder, or it holds no images, or it is a run, whose pictures are
            grids; or it has another size than the crop and is no such set.
    """
    images = _opened(text, what, crop, lenient)
    if crop is not None and images.shape[1:3] != crop[:2]:
        y, x = images.shape[1:3]
        raise UserError(
            f"{what}: wanted images of {crop[0]} x {crop[1]} pixels in {text}, found {y} x {x}; a crop is of images in "
            "folders, tables or tars"
        )
    return images


def _opened(text: str, what: str, crop: tuple[int, ...] | None, lenient: bool) -> ImageSet:
    name, colon, split = text.partition(":")
    if name in DATASETS.names():
        dataset = DATASETS.build(Plugin(name, {"split": split} if colon else {}), what)
        return ArrayImages(dataset.images(), text, dataset.labels())
    path = find(text, "dataset of images", what)
    if not isinstance(path, Path):
        return SourceImages(_source(text, what, Selection()), None, text, crop, lenient)
    refuse_run(path, text, what)
    if path.is_dir() and path.name.endswith(".parts"):
        return ShardImages(path, text)
    if is_packed(path):
        images = SourceImages(_source(text, what, FOLLOWED), path, text, crop, lenient)
        images.notes = [*images.notes, *_splits_left_out(path)]
        return images
    return FolderImages(path, text, crop, lenient) if path.is_dir() else NpzImages(path, text)


def _source(text: str, what: str, selection: Selection) -> ImageSource:
    """A source, of which no part can be chosen here.

    Raises:
        UserError: As open_source; of several parts it says what to name instead.
    """
    try:
        return open_source(text, selection)
    except ChoiceError as error:
        raise UserError(f"{what}: {error.parts}; {error.elsewhere}") from error


def _splits_left_out(path: Path) -> list[str]:
    """A note on the splits of a saved dataset that are not read."""
    try:
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    others = [str(name) for name in splits if name != DEFAULT]
    return [f"split {DEFAULT} is read; left out: {', '.join(others)} (as {path / others[0]})"] if others else []
