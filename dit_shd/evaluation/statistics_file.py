"""Statistics files: what a reference needs for FID and sFID, without its images.

The layout is that of ADM's reference files, an npz of mu [d], sigma [d, d], mu_s [s], sigma_s [s, s] and perhaps
arr_0, images of the set for precision, recall and KID. Ours also say what they are of: n, network, network_sha256,
shape (h, w, c of the images) and TEXTS. Nothing in a file is ever unpickled.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.data.image_sets import BROKEN_FILE, broken
from dit_shd.evaluation.feature_set import FeatureSet, Statistics

LARGEST = 1e30
"""Of a mean or covariance that can be squared without overflow; features of images are nowhere near."""
ROUNDING = 1e-6
"""What a covariance may be asymmetric or negative by, relative to its norm: float32 statistics are."""
TEXTS = ("network", "network_sha256", "source", "source_sha256", "lossy", "notes", "command", "dit_shd")
"""lossy: `yes` where some of the images are; notes: those on the images, a line each."""


@dataclass(frozen=True)
class StatisticsFile:
    """What a file holds.

    pooled, spatial: the statistics of FID and of sFID (None where the file has none).
    shape: (h, w, c) of the images behind them, None where the file does not say.
    texts: the other entries that say what they are of, "" where the file does not.
    has_images: whether arr_0 is there too.
    """

    pooled: Statistics
    spatial: Statistics | None
    shape: tuple[int, ...] | None
    texts: dict[str, str]
    has_images: bool

    @property
    def complete(self) -> bool:
        """All four statistics are there."""
        return self.spatial is not None


def is_statistics_file(path: Path, name: str) -> bool:
    """Whether an npz file has mu and sigma.

    Raises:
        UserError: not an npz file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {"mu.npy", "sigma.npy"} <= set(archive.namelist())
    except BROKEN_FILE as error:
        raise broken(name, error, path) from error


def read_statistics(path: Path, name: str) -> StatisticsFile:
    """Read and check; `name` is the file in errors.

    Raises:
        UserError: not an npz file; statistics of the wrong shape or type, not finite or too large, or a sigma that
            is no covariance.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            has_images = "arr_0" in archive.files
            entries = {key: archive[key] for key in archive.files if not key.startswith("arr_")}
    except BROKEN_FILE as error:
        raise broken(name, error, path) from error
    try:
        n = int(entries.get("n", 0))
        shape = tuple(int(v) for v in entries["shape"]) if "shape" in entries else None
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: wanted n and shape as whole numbers, found something else ({error})") from error
    if n < 0 or n == 1:
        raise UserError(f"{name}: wanted statistics of at least 2 images, found n = {n}")
    pooled = _checked(entries["mu"], entries["sigma"], n, name, "")
    spatial = None
    if "mu_s" in entries and "sigma_s" in entries:
        spatial = _checked(entries["mu_s"], entries["sigma_s"], n, name, "_s")
    return StatisticsFile(pooled, spatial, shape, {key: str(entries.get(key, "")) for key in TEXTS}, has_images)


def write_statistics(out: Path, features: FeatureSet, about: dict[str, Any], images: np.ndarray | None) -> None:
    """Write whole or not at all: the statistics of a set of features, what they are of, and some of its images.

    Raises:
        UserError: the file cannot be written (a full disk, a folder without permission).
    """
    entries: dict[str, Any] = {"mu": features.statistics.mean, "sigma": features.statistics.covariance}
    if features.spatial is not None:
        entries |= {"mu_s": features.spatial.mean, "sigma_s": features.spatial.covariance}
    entries = {key: value.cpu().numpy() for key, value in entries.items()} | {"n": features.statistics.n, **about}
    if images is not None:
        entries["arr_0"] = images
    part = out.with_name(f".{out.name}.part")
    try:
        with part.open("wb") as stream:
            np.savez(stream, **entries)
        part.replace(out)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{out}: could not be written ({error.strerror}); make room or choose out=OTHER.npz") from error


def _checked(mean: np.ndarray, covariance: np.ndarray, n: int, name: str, suffix: str) -> Statistics:
    mu, sigma = f"mu{suffix}", f"sigma{suffix}"
    fits = mean.ndim == 1 and len(mean) > 0 and covariance.shape == (len(mean), len(mean))
    if not fits or mean.dtype.kind != "f" or covariance.dtype.kind != "f":
        raise UserError(
            f"{name}: wanted statistics {mu} float [d] and {sigma} float [d, d], "
            f"found {mean.dtype} {list(mean.shape)} and {covariance.dtype} {list(covariance.shape)}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{name}: wanted finite statistics, found nan or inf in {mu} or {sigma}; compute them again")
    largest = float(max(np.abs(mean).max(), np.abs(covariance).max()))
    if largest > LARGEST:
        raise UserError(f"{name}: wanted statistics of images, found a value of {largest:.3g}; compute them again")
    tensor = torch.from_numpy(covariance).double()
    _check_covariance(tensor, name, sigma)
    return Statistics(n, torch.from_numpy(mean).double(), tensor)


def _check_covariance(covariance: Tensor, name: str, what: str) -> None:
    """Symmetric, and without negative eigenvalues beyond rounding (Cholesky of a shifted copy, cheaper than eigh)."""
    rounding = ROUNDING * float(covariance.norm()) + 1e-300
    if float((covariance - covariance.T).abs().max()) > rounding:
        raise UserError(f"{name}: wanted a covariance in {what}, found a matrix that is not symmetric")
    shifted = covariance + rounding * torch.eye(len(covariance), dtype=covariance.dtype)
    if int(torch.linalg.cholesky_ex(shifted).info):
        raise UserError(f"{name}: wanted a covariance in {what}, found a matrix with negative eigenvalues")
