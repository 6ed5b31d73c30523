"""Images that cannot be read are counted and skipped; what is no image's fault skips none."""

import json
import os

import numpy as np
import pytest
from encoded import LABELS, contents, encode, pictures, tensors, write_folder
from PIL import Image

from dit_shd.core.errors import UserError
from dit_shd.data import encoding
from dit_shd.data.latent_shards import read_index, shard_files

pytestmark = pytest.mark.usefixtures("one_thread")


def broken_folder(root):
    """Three sound images, and between the first two and the last one of every kind of trouble; reasons by name."""
    write_folder(root, pictures(3), np.array([0, 0, 1]))
    folder = root / "class0"
    sound = (folder / "0000.png").read_bytes()
    (folder / "cut.png").write_bytes(sound[: len(sound) // 2])
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.webp").write_bytes(b"")
    Image.new("1", (30000, 30000)).save(folder / "bomb.png")  # 110 kB
    Image.new("1", (1, 300_000)).save(folder / "needle.png")  # small, until it is scaled
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(folder / "deep.png")
    (root.parent / "outside.png").write_bytes(sound)
    (folder / "link.png").symlink_to(root.parent / "outside.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    return {
        "cut.png": "truncated", "text.jpg": "none of PNG", "empty.webp": "none of PNG",
        "bomb.png": "900000000 pixels", "needle.png": "256 x 76800000 pixels", "deep.png": "mode I;16",
        "link.png": "leads out of the folder", "circle.png": "no regular file", "pipe.png": "no regular file",
        "script.png": "none of PNG",
    }  # fmt: skip


def test_broken_images_are_counted_listed_and_skipped(tmp_path, caplog):
    reasons = broken_folder(tmp_path / "set")
    out = encode(tmp_path / "set", tmp_path / "l", size=256, flips=False)
    posterior, labels = tensors(out)
    assert len(posterior) == 3 and labels.tolist() == [0, 0, 1]
    lines = map(json.loads, (out / "skipped.jsonl").read_text().splitlines())
    listed = {line["image"].removeprefix("class0/"): line["reason"] for line in lines}
    assert listed.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in listed[name]
        assert str(tmp_path) not in listed[name]
    assert f"{len(reasons)} of {len(reasons) + 3} images were skipped; " in caplog.text
    assert read_index(out).about["skipped"] == len(reasons)
    first = contents(out)
    assert contents(encode(tmp_path / "set", tmp_path / "again", size=256, flips=False)) == first


def test_nothing_but_broken_images(tmp_path):
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "x.png").write_text("x")
    with pytest.raises(UserError, match=r"none of '.*set' could be read; a/x\.png: none of PNG"):
        encode(tmp_path / "set", tmp_path / "l")
    assert (tmp_path / "l" / "skipped.jsonl").exists()
    assert not (tmp_path / "l" / "latents.json").exists()


def test_a_failing_disk_skips_nothing(tmp_path, monkeypatch):
    images = write_folder(tmp_path / "set", pictures(20), LABELS)

    def fails(*_, **__):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", fails)
        with pytest.raises(UserError, match=r"0000\.png: Input/output error; try again"):
            encode(images, tmp_path / "l")
    assert not shard_files(tmp_path / "l")


@pytest.mark.parametrize("number", [2, 13, 107])
def test_no_error_of_a_file_system_is_an_images(tmp_path, monkeypatch, number):
    """No such file, no permission, a mount that is not connected any more."""
    images = write_folder(tmp_path / "set", pictures(1), LABELS)

    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(UserError, match=rf"{os.strerror(number)}; try again"):
        encoding.pixels(images / "class0" / "0000.png", 8)


def test_a_folder_that_goes_away_and_is_back_is_whole(tmp_path, monkeypatch):
    images, moved, real = write_folder(tmp_path / "set", pictures(20), LABELS), tmp_path / "moved", encoding.pixels

    def goes(*arguments):
        if images.exists():
            images.rename(moved)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(encoding, "pixels", goes)
        with pytest.raises(UserError, match=r"was listed and is gone|No such file or directory; try again"):
            encode(images, tmp_path / "l", batch_size=1, workers=1)
    moved.rename(images)
    assert len(read_index(encode(images, tmp_path / "l", batch_size=1, workers=1))) == 20
