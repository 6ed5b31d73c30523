"""Shards: written whole, read with every byte checked, merged in constant memory."""

import errno
import json
import os
import tracemalloc

import numpy as np
import pytest

from dit_shd.core.errors import UserError
from dit_shd.core.files import atomic_file
from dit_shd.core.resumable import SETTINGS
from dit_shd.data.image_shards import merge, open_shards, read_shard, shard_file, write_shard


def folder_of(path, count, size=64):
    """A folder of shards of two images each."""
    path.mkdir()
    (path / SETTINGS).write_text(json.dumps({"seed": 0}))
    r = np.random.default_rng(0)
    for first in range(0, 2 * count, 2):
        images = r.integers(0, 256, (2, size, size, 3), dtype=np.uint8)
        write_shard(shard_file(path, first), images, np.array([first, first + 1]))
    return path


def test_merging_streams(tmp_path):
    """What numpy reads back is all of it in order, and the peak of memory does not grow with the count."""
    peaks = {}
    for count in (4, 64):
        shards = open_shards(folder_of(tmp_path / str(count), count, size=128))
        merge(shards, tmp_path / "warm.npz")
        tracemalloc.start()
        merge(shards, tmp_path / f"{count}.npz")
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    with np.load(tmp_path / "64.npz", allow_pickle=False) as file:
        assert file["arr_1"].tolist() == list(range(128))
        np.testing.assert_array_equal(file["arr_0"], np.concatenate([images for images, _ in shards]))
    assert shards.shape == (128, 128, 128, 3)
    assert peaks[64] < 1.3 * peaks[4] < 0.1 * 128 * 128 * 128 * 3


def test_every_flipped_bit_and_every_cut_is_found(tmp_path):
    file = shard_file(folder_of(tmp_path / "s", 1, size=2), 0)
    whole, (images, labels) = file.read_bytes(), read_shard(file)
    for cut in range(0, len(whole), 7):
        file.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="half-written or damaged"):
            read_shard(file)
    found = 0
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            again = read_shard(file)
        except UserError:
            found += 1
        else:  # a date or another part of zip's own that means nothing
            np.testing.assert_array_equal(again[0], images)
            np.testing.assert_array_equal(again[1], labels)
    assert found > len(whole) / 2


def test_a_header_that_promises_too_much_allocates_nothing(tmp_path):
    file = shard_file(folder_of(tmp_path / "s", 1), 0)
    data = file.read_bytes()
    file.write_bytes(data.replace(b"(2, 64, 64, 3)", b"(9**9, 64, 3,)", 1))
    with pytest.raises(UserError, match="half-written or damaged"):
        open_shards(tmp_path / "s")
    np.savez(file, arr_0=np.array([object()]), arr_1=np.zeros(1, np.int64))
    with pytest.raises(UserError, match="half-written or damaged"):
        read_shard(file)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="wanted a folder of shards"):
        open_shards(tmp_path / "nothing")
    with pytest.raises(UserError, match="wanted a folder of shards"):
        open_shards(tmp_path)
    with pytest.raises(UserError, match="no shard is finished yet"):
        open_shards(folder_of(tmp_path / "s", 0))
    (tmp_path / "s" / SETTINGS).write_text("[1")
    with pytest.raises(UserError, match="cannot be read"):
        open_shards(tmp_path / "s")
    for first, size in ((0, 2), (1, 3)):
        write_shard(shard_file(tmp_path / "s", first), np.zeros((1, size, size, 1), np.uint8), np.zeros(1, np.int64))
    (tmp_path / "s" / SETTINGS).write_text("{}")
    with pytest.raises(UserError, match="wanted shards of one image size"):
        open_shards(tmp_path / "s")


def test_a_full_disk(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "s", 2)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"4\.npz: cannot be written: the disk is full; what is finished is kept"):
        write_shard(shard_file(folder, 4), np.zeros((2, 64, 64, 3), np.uint8), np.zeros(2, np.int64))
    with pytest.raises(UserError, match="the disk is full"):
        merge(open_shards(folder), tmp_path / "all.npz")
    assert open_shards(folder).shape == (4, 64, 64, 3)
    assert sorted(f.name for f in [*folder.iterdir(), *tmp_path.iterdir()]) == [
        "000000000.npz", "000000002.npz", "s", SETTINGS,
    ]  # fmt: skip
    with pytest.raises(UserError, match="cannot be written: No such file"):
        write_shard(tmp_path / "gone" / "000000000.npz", np.zeros((1, 2, 2, 1), np.uint8), np.zeros(1, np.int64))


def test_a_disk_that_is_really_full(tmp_path):
    """A file whose unfinished part is a link to /dev/full: the kernel refuses what is written."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    (tmp_path / f".000000000.npz.{os.getpid()}.dit_shd.part").symlink_to("/dev/full")
    shard = tmp_path / "000000000.npz"
    with pytest.raises(UserError, match="the disk is full"), atomic_file(shard) as stream:
        stream.write(bytes(100_000))
    assert os.path.exists("/dev/full")
    assert not list(tmp_path.iterdir())
