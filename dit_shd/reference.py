"""What samples are compared with: images, statistics of features, or both in one file (ADM)."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dit_shd.errors import UserError
from dit_shd.features import FeatureNetwork
from dit_shd.image_sets import BROKEN_FILE, ImageSet, NpzImages, broken, file_sha256, open_images
from dit_shd.metrics import FeatureSet

Extract = Callable[[FeatureNetwork, ImageSet, int], FeatureSet]


@dataclass(frozen=True)
class Reference:
    """A named reference.

    images: the set of images, if there is one.
    statistics: mean and covariance that were computed before, if there are any. They win over those of
        `images` (ADM's file: statistics of the training set, and 10,000 images for precision and recall).
    network_sha256: weights of the network behind `statistics`, "" where the file does not say.
    sha256: of the file, where that is not the one of `images`.
    """

    name: str
    images: ImageSet | None = None
    statistics: FeatureSet | None = None
    network_sha256: str = ""
    sha256: str = ""

    @property
    def image_count(self) -> int:
        """Images whose single features can be had, 0 for statistics alone."""
        if self.images is not None:
            return self.images.shape[0]
        return 0 if self.statistics is None or self.statistics.pooled is None else len(self.statistics.pooled)

    def check(self, samples: ImageSet, network: FeatureNetwork) -> None:
        """Refuse a reference that these samples cannot be compared with in the features of this network.

        Raises:
            UserError: images of another shape, or statistics of another network.
        """
        if self.images is not None and self.images.shape[1:] != samples.shape[1:]:
            raise UserError(
                f"{self.name}: wanted reference images like the samples, (h, w, c) = {samples.shape[1:]}, "
                f"found {self.images.shape[1:]}; make both of one size, the same way"
            )
        if self.statistics is None:
            return
        # ADM's files name no network; theirs is the 2015 Inception.
        fits = self.network_sha256 == network.sha256 if self.network_sha256 else network.is_fid
        if not fits:
            raise UserError(
                f"{self.name}: wanted statistics of feature network {network.title} ({network.sha256[:8]}), "
                f"found those of {self.network_sha256[:8] or 'a network it does not name'}; "
                "use the same features=NAME for both, or a reference of images"
            )

    def features(self, network: FeatureNetwork, batch_size: int, extract: Extract) -> FeatureSet:
        """The set a metric sees; images are run through the network by `extract`."""
        if self.images is None:
            assert self.statistics is not None, "a reference has images or statistics"
            return _moved(self.statistics, network.device)
        found = extract(network, self.images, batch_size)
        if self.statistics is None:
            return found
        if self.statistics.mean.shape != found.mean.shape:
            raise UserError(
                f"{self.name}: wanted statistics of {len(found.mean)} features, "
                f"found {len(self.statistics.mean)}; use the network they were made with"
            )
        known = _moved(self.statistics, found.mean.device)
        return replace(found, n=known.n, mean=known.mean, covariance=known.covariance, separate_statistics=True)

    def describe(self) -> dict[str, Any]:
        """For the record: hash, counts, and where mean and covariance come from."""
        sha256 = self.sha256 or (self.images.sha256() if self.images else "")
        about: dict[str, Any] = {"sha256": sha256, "n": self.image_count}
        if self.statistics is not None:
            about["statistics"] = {
                "n": self.statistics.n or "not recorded",
                "network_sha256": self.network_sha256,
            }
        return about


def open_reference(text: str, what: str) -> Reference:
    """Images as `open_images` reads them, or an npz file with mu [d] and sigma [d, d], and perhaps arr_0.

    Raises:
        UserError: as `open_images`; or statistics of the wrong shape or type.
    """
    path = Path(text)
    if path.is_file():
        try:
            with zipfile.ZipFile(path) as archive:
                members = set(archive.namelist())
        except BROKEN_FILE as error:
            raise broken(text, error) from error
        if {"mu.npy", "sigma.npy"} <= members:
            images = NpzImages(path, text) if "arr_0.npy" in members else None
            statistics, network = _statistics(path, text)
            return Reference(text, images, statistics, network, file_sha256(path))
    return Reference(text, images=open_images(text, what))


def _moved(features: FeatureSet, device: torch.device) -> FeatureSet:
    return replace(features, mean=features.mean.to(device), covariance=features.covariance.to(device))


def _statistics(path: Path, name: str) -> tuple[FeatureSet, str]:
    """mu, sigma and, if there, n and network_sha256 of an npz file."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            mean, covariance = archive["mu"], archive["sigma"]
            count = int(archive["n"]) if "n" in archive else 0
            network = str(archive["network_sha256"]) if "network_sha256" in archive else ""
    except BROKEN_FILE as error:
        raise broken(name, error) from error
    fits = mean.ndim == 1 and covariance.shape == (len(mean), len(mean))
    if not fits or mean.dtype.kind != "f" or covariance.dtype.kind != "f":
        raise UserError(
            f"{name}: wanted statistics mu float [d] and sigma float [d, d], "
            f"found {mean.dtype} {list(mean.shape)} and {covariance.dtype} {list(covariance.shape)}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{name}: wanted finite statistics, found nan or inf in mu or sigma; compute them again")
    return FeatureSet(count, torch.from_numpy(mean).double(), torch.from_numpy(covariance).double()), network
