"""Statistics files: a reference for FID and sFID without its images.

The layout is that of ADM's reference files, an npz of mu [d], sigma [d,d], mu_s [s], sigma_s [s,s] and perhaps
arr_0, images of the set for precision, recall and KID. Files of dit-shd also record their origin: n, network,
network_sha256, shape (y, x, c of the images) and TEXTS. Nothing in a file is ever unpickled.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.core.files import atomic_file
from dit_shd.core.places import expanded
from dit_shd.data.npz_files import BROKEN_FILE, broken_file_error
from dit_shd.evaluation.feature_set import FeatureSet, Statistics

LARGEST = 1e30
"""Largest value of a mean or covariance that can be squared without overflow, far beyond features of images."""
ROUNDING = 1e-6
"""Allowed asymmetry or negative eigenvalue of a covariance, relative to its norm: rounding of float32 statistics."""
TEXTS = (
    "network", "network_sha256", "network_options", "source", "source_sha256", "lossy", "notes", "command", "dit_shd",
)  # fmt: skip
"""network_options: those that are not the defaults, as JSON; lossy: `yes` if some of the images are; notes: remarks on
the images, one a line."""


@dataclass(frozen=True)
class StatisticsFile:
    """The content of a file."""

    pooled: Statistics
    """Of FID."""
    spatial: Statistics | None
    """Of sFID; None where the file has none."""
    shape: tuple[int, ...] | None
    """(y, x, c) of the images, None where it is not recorded."""
    texts: dict[str, str]
    """The entries in TEXTS, "" where they are not recorded."""
    has_images: bool
    """Whether the file holds arr_0 too."""

    @property
    def complete(self) -> bool:
        """Whether the file has all four statistics."""
        return self.spatial is not None


def is_statistics_file(path: Path, name: str) -> bool:
    """Whether an npz file has mu and sigma.

    Raises:
        UserError: Not an npz file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {"mu.npy", "sigma.npy"} <= set(archive.namelist())
    except BROKEN_FILE as error:
        raise broken_file_error(name, error, path) from error


def is_statistics(text: str) -> bool:
    """Whether a place, in the user's words, is a file of statistics, and neither images nor tables."""
    path = Path(expanded(text))
    return path.is_file() and zipfile.is_zipfile(path) and is_statistics_file(path, text)


def read_statistics(path: Path, name: str) -> StatisticsFile:
    """Read and check a file.

    Args:
        path: The file.
        name: The file in errors.

    Raises:
        UserError: Not an npz file; statistics of the wrong shape or type, not finite or too large, or a sigma that
            is no covariance.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            has_images = "arr_0" in archive.files
            entries = {key: archive[key] for key in archive.files if not key.startswith("arr_")}
    except BROKEN_FILE as error:
        raise broken_file_error(name, error, path) from error
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
    """Write a file in one step.

    Args:
        out: The file.
        features: Their statistics are written.
        about: Other entries, which record their origin.
        images: Images of the set to be kept, uint8 [n,y,x,c].

    Raises:
        UserError: The file cannot be written (a full disk, a folder without permission).
    """
    entries: dict[str, Any] = {"mu": features.statistics.mean, "sigma": features.statistics.covariance}
    if features.spatial is not None:
        entries |= {"mu_s": features.spatial.mean, "sigma_s": features.spatial.covariance}
    entries = {key: value.cpu().numpy() for key, value in entries.items()} | {"n": features.statistics.n, **about}
    if images is not None:
        entries["arr_0"] = images
    with atomic_file(out, "make room or choose out=OTHER.npz") as stream:
        np.savez(stream, **entries)


def _checked(mean: np.ndarray, covariance: np.ndarray, n: int, name: str, suffix: str) -> Statistics:
    mu, sigma = f"mu{suffix}", f"sigma{suffix}"
    mean, covariance = (x.astype(np.float64) if x.dtype.kind == "f" else x for x in (mean, covariance))
    valid = mean.ndim == 1 and len(mean) > 0 and covariance.shape == (len(mean), len(mean))
    if not valid or mean.dtype.kind != "f" or covariance.dtype.kind != "f":
        raise UserError(
            f"{name}: wanted statistics {mu} float [d] and {sigma} float [d,d], "
            f"found {mean.dtype} {list(mean.shape)} and {covariance.dtype} {list(covariance.shape)}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{name}: wanted finite statistics, found nan or inf in {mu} or {sigma}; compute them again")
    largest = float(max(np.abs(mean).max(), np.abs(covariance).max()))
    if largest > LARGEST:
        raise UserError(f"{name}: wanted statistics of images, found a value of {largest:.3g}; compute them again")
    tensor = torch.from_numpy(covariance)
    _check_covariance(tensor, name, sigma)
    return Statistics(n, torch.from_numpy(mean), tensor)


def _check_covariance(covariance: Tensor, name: str, what: str) -> None:
    """Check for symmetry, and for negative eigenvalues beyond rounding (Cholesky of a shifted copy, not eigh)."""
    rounding = ROUNDING * float(covariance.norm()) + 1e-300
    if float((covariance - covariance.T).abs().max()) > rounding:
        raise UserError(f"{name}: wanted a covariance in {what}, found a matrix that is not symmetric")
    shifted = covariance + rounding * torch.eye(len(covariance), dtype=covariance.dtype)
    if int(torch.linalg.cholesky_ex(shifted).info):
        raise UserError(f"{name}: wanted a covariance in {what}, found a matrix with negative eigenvalues")
