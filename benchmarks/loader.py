"""The loader of latents: latents (4 x 32 x 32) and bytes for each CPU second of one process with one thread.

    python benchmarks/loader.py [--latents 8192] [--batch 256] [--dtype float32]

Ours: `Latents.batch` as the trainer calls it, in an epoch's shuffled order: which samples, the memory-mapped rows,
flips, posterior noise and labels. References, over the same latents in the same order: `npy`, one file for each image
with a frozen sample of its posterior (the layout of latent caches such as fast-DiT's), which draws nothing; and
`arrow`, the datasets package's memory-mapped table of posteriors, read a batch at a time, with the same draws as ours.
All files lie in the page cache, but for `cold`: ours, once, after the kernel was asked to forget the shards.
"""

import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from _measure import in_turn, parse, parser
from torch import Tensor

from dit_shd.core import rng
from dit_shd.data.datasets.latents import Latents
from dit_shd.data.latent_shards import (
    DTYPES,
    LatentSet,
    ShardEntry,
    mapped,
    shard_file,
    verify_shard,
    write_index,
    write_shard,
)

SHAPE = (4, 32, 32)
SHARD = 1024


def write_set(folder: Path, count: int, dtype: str) -> None:
    """Random posteriors in shards of 1,024 images, as encode writes them."""
    r = np.random.default_rng(0)
    entries = []
    for first in range(0, count, SHARD):
        posterior = r.standard_normal((min(SHARD, count - first), 2, 2, *SHAPE), dtype=np.float32)
        file = shard_file(folder, first)
        write_shard(file, posterior.astype(DTYPES[dtype]), r.integers(0, 1000, len(posterior)), [])
        entries.append(ShardEntry(file.name, len(posterior), file.stat().st_size, verify_shard(file).sha256))
    write_index(LatentSet(folder, SHAPE, 2, 2, dtype, tuple(map(str, range(1000))), {}, tuple(entries)))


def npy_files(data: Latents, folder: Path) -> Callable[[np.ndarray], Tensor]:
    """One file for each image; what reads a batch of them."""
    for i in range(len(data)):
        np.save(folder / f"{i}.npy", data.batch(np.array([i]), rng.Draws(0, 0, [0], 1))["latents"].numpy())

    def read(indices: np.ndarray) -> Tensor:
        return torch.from_numpy(np.concatenate([np.load(folder / f"{i}.npy", allow_pickle=False) for i in indices]))

    return read


def arrow_table(shards: Path, folder: Path) -> Callable[[np.ndarray, int, Sequence[int]], Tensor]:
    """The same posteriors as a table of the datasets package; what reads a batch and draws from it."""
    import datasets
    import pyarrow as pa

    datasets.disable_progress_bars()
    parts = [mapped(file, "posterior") for file in sorted(shards.glob("*.safetensors"))]
    flat = np.concatenate([part.reshape(len(part), -1) for part in parts])
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
    datasets.Dataset(pa.table({"posterior": column})).save_to_disk(folder)
    table = datasets.load_from_disk(folder).with_format("numpy")

    def read(indices: np.ndarray, step: int, positions: Sequence[int]) -> Tensor:
        rows = table[indices]["posterior"].reshape(len(indices), 2, 2, *SHAPE)
        sides = (rng.uniform(0, "flip", step, positions) < 0.5).numpy().astype(int)
        chosen = torch.from_numpy(rows[np.arange(len(rows)), sides]).float()
        return chosen[:, 0].addcmul(chosen[:, 1], rng.normal(0, "posterior", step, positions, SHAPE))

    return read


def forget(folder: Path) -> None:
    """Let the kernel drop the shards from its page cache."""
    for file in folder.glob("*.safetensors"):
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--latents", type=int, default=8192, help="images in the set; an epoch is timed")
    options.add_argument("--batch", type=int, default=256)
    options.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    args = parse(options)
    dtype = {"float32": "F32", "float16": "F16"}[args.dtype]
    with tempfile.TemporaryDirectory() as name:
        folders = {key: Path(name) / key for key in ("shards", "npy", "arrow")}
        for folder in folders.values():
            folder.mkdir()
        write_set(folders["shards"], args.latents, dtype)
        forget(folders["shards"])
        data = Latents(folders["shards"])
        positions, steps = range(args.batch), range(args.latents // args.batch)

        def draws(step: int) -> rng.Draws:
            return rng.Draws(0, step, positions, args.batch)

        def epoch(read: Callable[[np.ndarray, int], object]) -> None:
            for step in steps:
                read(draws(step).indices(len(data)), step)

        def ours() -> None:
            epoch(lambda indices, step: data.batch(indices, draws(step)))

        start = time.perf_counter()
        ours()
        cold = time.perf_counter() - start
        npy, arrow = npy_files(data, folders["npy"]), arrow_table(folders["shards"], folders["arrow"])
        sides = {
            "ours": ours,
            "npy": lambda: epoch(lambda indices, _: npy(indices)),
            "arrow": lambda: epoch(lambda indices, step: arrow(indices, step, positions)),
        }
        wall = in_turn(sides, args.repeats)
        seconds = in_turn(sides, args.repeats, time.process_time)
    seen, size = len(steps) * args.batch, DTYPES[dtype].itemsize * math.prod(SHAPE)
    bytes_read = {"ours": 2 * size, "npy": 4 * math.prod(SHAPE), "arrow": 4 * size}
    for side, taken in seconds.items():
        print(
            f"{side}: {seen / taken:,.0f} latents and {seen * bytes_read[side] / taken / 1e6:,.0f} MB a CPU second "
            f"({seen / wall[side]:,.0f} latents a second); ours / {side} {seconds['ours'] / taken:.3f}"
        )
    print(f"ours, cold: {seen / cold:,.0f} latents and {seen * 2 * size / cold / 1e6:,.0f} MB a second")


if __name__ == "__main__":
    main()
