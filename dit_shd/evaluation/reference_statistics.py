"""The statistics file of a set of images: a reference that no longer requires the images."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dit_shd import __version__
from dit_shd.core import environment
from dit_shd.core.config import REQUIRED, check_ranges, checked, option
from dit_shd.core.devices import find_device
from dit_shd.core.errors import UserError
from dit_shd.core.places import Place
from dit_shd.core.plugins import Plugin
from dit_shd.data.image_sets import spread
from dit_shd.data.open_images import open_images
from dit_shd.evaluation import results
from dit_shd.evaluation.extraction import extract_features
from dit_shd.evaluation.features import build_network
from dit_shd.evaluation.statistics_file import is_statistics, write_statistics

LARGEST = 2**13
_log = logging.getLogger("dit_shd")


@dataclass(frozen=True)
class StatisticsConfig:
    """The images, the network and the file."""

    images: Place = option(REQUIRED, "npz (arr_0: uint8 [n,y,x,c]), images (folder, Parquet, tars), or dataset[:split]")
    out: Path = option(REQUIRED, "the npz to be written: mu, sigma (mu_s, sigma_s), n, network, sha256s, shape")
    size: int | list[int] | None = option(
        None,
        "side, or height and width, of the centre crop of stored images of any size; empty: all are of one size",
        range=(1, LARGEST),
    )
    features: Plugin = option(Plugin("inception"), "feature network, a file of dit_shd/evaluation/features")
    keep_images: int = option(
        0, "number of images to keep in the file (ADM: 10000), for precision, recall and KID", range=(0, 1e9)
    )
    batch_size: int = option(64, "images per forward pass of the feature network", range=(1, 1e6))
    device: str = option("auto", "where the feature network runs: auto, cpu, cuda, cuda:1")
    force: bool = option(False, "overwrite a file that is there")


def write_reference_statistics(config: StatisticsConfig) -> Path:
    """Run the feature network over the images and write the file.

    The images that are kept are spread over the set, so that it keeps every class whatever its order.

    Args:
        config: The images, the network and the file.

    Returns:
        The file, with the suffix .npz.

    Raises:
        UserError: Images that cannot be read, a file at `out`, or one that cannot be written.
    """
    config = checked(config, "statistics")
    check_ranges(config)
    out = config.out if config.out.suffix == ".npz" else config.out.with_name(config.out.name + ".npz")
    results.new_file(out, config.force, [config.images])
    if is_statistics(config.images):
        text = config.images
        raise UserError(f"images: {text} holds statistics already (mu, sigma); give it as reference={text}")
    network = build_network(config.features)
    images = open_images(config.images, "images", _crop(config.size, network.channels), lenient=True)
    n = images.shape[0]
    if config.keep_images > n:
        raise UserError(f"keep_images: wanted 0 to {n}, the number of images, found {config.keep_images}")
    network.check(images.shape[1:], "images")
    network.to(find_device(config.device, float64=True))
    about = {
        "network": network.title,
        "network_sha256": network.sha256,
        "network_options": json.dumps(dict(network.options), sort_keys=True),
        "shape": np.array(images.shape[1:]),
        "source": images.name,
        "source_sha256": images.sha256(),
        "lossy": "yes" if images.lossy else "",
        "notes": "\n".join(images.notes),
        "command": environment.command(),
        "dit_shd": __version__,
    }
    for note in images.notes:
        _log.warning("images: %s", note)
    features = extract_features(network, images, config.batch_size)
    count = config.keep_images
    kept = images.take(spread(n, count)) if count else None
    write_statistics(out, features, about, kept)
    return out


def _crop(size: int | list[int] | None, channels: int) -> tuple[int, ...] | None:
    """(y, x, c) of the crop, of as many channels as the network reads.

    Raises:
        UserError: The key is neither a side nor height and width.
    """
    if size is None:
        return None
    sides = [size, size] if isinstance(size, int) else size
    if len(sides) != 2:
        raise UserError(f"size: wanted a side, or height and width, found {size}")
    return (*sides, channels)
