"""A set of images by its name or path: a dataset, an npz file, shards, or a folder."""

from pathlib import Path

from dit_shd.core.places import find
from dit_shd.core.plugins import Plugin
from dit_shd.data.datasets import DATASETS
from dit_shd.data.image_folders import FolderImages, ShardImages
from dit_shd.data.image_sets import ArrayImages, ImageSet, NpzImages


def open_images(text: str, what: str) -> ImageSet:
    """Open a set of images.

    Args:
        text: A dataset (`digits`, `digits:validation`), an npz file, or a folder of images or of a sampling's shards.
            A dataset's name takes precedence over a file of that name; `./digits` is the file.
        what: The config key, for errors.

    Raises:
        UserError: There is no such dataset, file or folder, or it holds no images.
    """
    name, colon, split = text.partition(":")
    if name in DATASETS.names():
        dataset = DATASETS.build(Plugin(name, {"split": split} if colon else {}), what)
        return ArrayImages(dataset.images(), text, dataset.labels())
    path = find(text, "dataset of images", what)
    assert isinstance(path, Path)
    if path.is_dir():
        return ShardImages(path, text) if path.name.endswith(".parts") else FolderImages(path, text)
    return NpzImages(path, text)
