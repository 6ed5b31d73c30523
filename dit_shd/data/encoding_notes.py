"""What is said of images that were encoded: remarks, those that could not be read, classes without any."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dit_shd.core.files import atomic_file
from dit_shd.core.names import counted, printable
from dit_shd.data.latent_shards import open_tensors
from dit_shd.data.sources.base import ImageSource

_log = logging.getLogger("dit_shd")


def summed(shard_remarks: Iterable[list[list[Any]]]) -> list[str]:
    """Remarks on images, counted over all shards.

    Args:
        shard_remarks: [remark, count, name of the first] of each shard.
    """
    totals: dict[str, list[Any]] = {}
    for remark, count, name in (entry for remarks in shard_remarks for entry in remarks):
        totals.setdefault(remark, [0, name])[0] += count
    return [f"{count} {remark} ({printable(name)}, ...)" for remark, (count, name) in sorted(totals.items())]


def unreadable_classes(source: ImageSource, files: Iterable[Path]) -> list[str]:
    """A note on classes of which no image could be read.

    Args:
        source: The images.
        files: The shards.
    """
    kept = np.concatenate([open_tensors(file).get_tensor("label") for file in files])
    lost = np.setdiff1d(source.labels, kept)
    return (
        [f"classes of which no image could be read: {counted([source.classes[i] for i in lost])}"] if len(lost) else []
    )


def write_list(skipped: list[list[Any]], count: int, file: Path) -> None:
    """Write a list of the images that could not be read, a line each.

    Args:
        skipped: [number, name, reason] of each.
        count: The number of all images.
        file: To be written.
    """
    with atomic_file(file) as stream:
        for _, name, reason in skipped:
            stream.write(json.dumps({"image": name, "reason": reason}).encode() + b"\n")
    _log.warning("%d of %d images were skipped; %s lists them and why", len(skipped), count, file)
