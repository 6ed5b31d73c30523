"""Images or latents in one npz file: arr_0 (uint8 [n,y,x,c] images or float [n,c,y,x] latents) and arr_1 (labels)."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import MAGIC_PREFIX
from torch import Tensor

from dit_shd.core.errors import UserError, one_line
from dit_shd.core.places import expanded
from dit_shd.core.rng import Draws
from dit_shd.data.datasets import Dataset
from dit_shd.data.latent_origin import COLOURS, Origin
from dit_shd.data.npz_files import BROKEN_FILE, MAX_EXPANSION, check_images, read_checked_header

SHOWN = 5
"""Arrays of another file that its error names."""

MOST_CLASSES = 2**20


class Npz(Dataset):
    """One npz file, held in memory. It does not record the autoencoder of float latents; the config's `vae` names it.

    Args:
        path: The file.
        flip: Whether half of the samples are mirrored left to right, drawn each time.
    """

    def __init__(self, path: Path, flip: bool = False):
        path = Path(expanded(path))
        self._path, self._flip = path, flip
        array, labels = _read(path)
        if array.dtype == np.uint8 and array.ndim == 4:
            self._images, self._latents = array, None
            self.fields = self.fields | {"images"}
            y, x, c = check_images(array.dtype, array.shape, False, f"{path}: arr_0")[1:]
        elif array.dtype in (np.float16, np.float32, np.float64) and array.ndim == 4:
            self._images, self._latents = None, array
            _, c, y, x = array.shape
            self.origin = Origin()
            if flip and c not in COLOURS:
                raise UserError(f"{path}: flip: wanted none of latents, a mirrored one is not that of a mirrored image")
        else:
            raise UserError(
                f"{path}: arr_0: wanted uint8 [n,y,x,c] images or float [n,c,y,x] latents, "
                f"found {array.dtype} {list(array.shape)}"
            )
        if labels.shape != (len(array),) or labels.dtype.kind not in "iu" or labels.min() < 0:
            lowest = f" down to {labels.min()}" if labels.size and labels.dtype.kind in "iu" else ""
            raise UserError(
                f"{path}: arr_1: wanted {len(array)} whole labels from 0, one for each image, found {labels.dtype} "
                f"{list(labels.shape)}{lowest}"
            )
        if labels.max() >= MOST_CLASSES:
            raise UserError(f"{path}: arr_1: wanted labels below {MOST_CLASSES}, found {labels.max()}")
        self._labels = labels.astype(np.int64)
        self.classes, self.shape = int(labels.max()) + 1, (c, y, x)

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, indices: np.ndarray, draws: Draws) -> dict[str, Tensor]:
        if self._images is not None:
            x_0 = torch.from_numpy(self._images[indices]).permute(0, 3, 1, 2).float() / 127.5 - 1
        else:
            assert self._latents is not None
            x_0 = torch.from_numpy(self._latents[indices]).float()
        if self._flip:
            mirrored = draws.uniform("flip") < 0.5
            x_0 = torch.where(mirrored[:, None, None, None], x_0.flip(-1), x_0)
        return {"latents": x_0, "labels": torch.from_numpy(self._labels[indices])}

    def images(self) -> np.ndarray:
        if self._images is None:
            raise UserError(f"{self._path}: holds latents, not images")
        return self._images

    def labels(self) -> np.ndarray:
        return self._labels


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; wanted an npz with arr_0 and arr_1")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(path, archive)
        with np.load(path, allow_pickle=False) as archive:
            images, labels = archive["arr_0"], archive["arr_1"]
    except UserError:
        raise
    except BROKEN_FILE as error:
        raise UserError(
            f"{path}: wanted an npz with arr_0 (images or latents) and arr_1 (labels), found {_content(path)}; "
            "np.savez(FILE, images, labels) writes one, with labels that are all 0 where there are none"
        ) from error
    if not images.size:
        raise UserError(f"{path}: arr_0 is empty; wanted at least one image")
    if images.dtype.kind == "f" and not bool(np.isfinite(images).all()):
        raise UserError(f"{path}: arr_0 is not finite (NaN or infinity)")
    return images, labels


def _content(path: Path) -> str:
    """What a file holds that is no such npz, in a few words."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [one_line(name.removesuffix(".npy")) for name in archive.namelist()]
        whole = {"arr_0", "arr_1"} <= set(names)
        return "a damaged one" if whole else ", ".join(names[:SHOWN]) + ", ..." * (len(names) > SHOWN) or "no array"
    except BROKEN_FILE:
        with path.open("rb") as file:
            return "one array (.npy)" if file.read(len(MAGIC_PREFIX)) == MAGIC_PREFIX else "no npz, or a damaged one"


def _check_sizes(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse a small file that expands into a large array, and headers of another size than their arrays."""
    for name in ("arr_0.npy", "arr_1.npy"):
        info = archive.getinfo(name)
        if info.file_size > MAX_EXPANSION * max(info.compress_size, 2**20):
            raise UserError(
                f"{path}: {name} expands from {info.compress_size} to {info.file_size} bytes; wanted an array of at "
                f"most {MAX_EXPANSION} times its size in the file (save it by numpy.savez)"
            )
        read_checked_header(archive, name)
