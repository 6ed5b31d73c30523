"""Emoji of an npm package, from a small archive of the same form."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.data.datasets import DATASETS
from dit_shd.data.datasets.emoji import CATEGORIES


def png(colour, alpha=255, side=64):
    file = io.BytesIO()
    Image.new("RGBA", (side, side), (*colour, alpha)).save(file, "PNG")
    return file.getvalue()


def entry(number, category="Flags", **more):
    return {"image": f"{number}.png", "category": category, "sort_order": number, "has_img_google": True, **more}


def archive(path, entries, images):
    files = {"package/emoji.json": json.dumps(entries).encode()}
    files |= {f"package/img/google/64/{name}.png": data for name, data in images.items()}
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def twelve(tmp_path):
    """Ten flags and more, listed backwards: a tenth with two skin tones, one that Google lacks, one of a component."""
    dark = {"1F3FF": {"image": "dark.png", "has_img_google": True}, "x": {"image": "no.png", "has_img_google": False}}
    entries = [entry(i) for i in range(9)]
    entries += [entry(9, "People & Body", skin_variations=dark), entry(10, "Component"), entry(11, "Symbols")]
    entries.append(entry(12, has_img_google=False))
    images = {i: png((20 * i, 0, 0)) for i in range(9)}
    images |= {9: png((0, 100, 0)), "dark": png((0, 50, 0)), 11: png((0, 0, 0), alpha=0)}
    return archive(tmp_path / "emoji.tgz", entries[::-1], images)


def build(path, **options):
    return DATASETS.build(Plugin("emoji", {"path": str(path), **options}), "data")


def test_every_tenth_emoji_with_its_skin_tones_is_held_out(twelve):
    train, test = build(twelve), build(twelve, split="test")
    assert train.images()[:, 3, 5].tolist() == [[20 * i, 0, 0] for i in range(9)] + [[255] * 3]
    assert test.images()[:, 3, 5].tolist() == [[0, 100, 0], [0, 50, 0]]
    assert [CATEGORIES[label] for label in train.labels()] == ["Flags"] * 9 + ["Symbols"]
    assert [CATEGORIES[label] for label in test.labels()] == ["People & Body"] * 2
    assert len(build(twelve, split="all")) == len(train) + len(test) == 12
    assert train.images().shape == (10, *train.shape[1:], 3) == (10, 32, 32, 3)


def test_latents_are_pixels_from_minus_one_to_one(twelve):
    data = build(twelve, size=16)
    batch = data.batch(np.array([8, 9]), None)
    assert batch["latents"].shape == (2, *data.shape) == (2, 3, 16, 16)
    assert batch["latents"][:, :, 0, 0].tolist() == [[pytest.approx(160 / 127.5 - 1), -1, -1], [1, 1, 1]]
    assert batch["labels"].tolist() == data.labels()[8:].tolist()


def test_a_pixel_is_the_mean_of_those_in_its_place(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    images = {i: file.getvalue() for i in range(10)}
    data = build(archive(tmp_path / "emoji.tgz", [entry(i) for i in range(10)], images))
    mean = pixels.reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(data.images()[0] - mean).max() <= 1  # rows and columns are rounded


@pytest.mark.parametrize(
    ("images", "line"),
    [
        ({}, "package/img/google/64/0.png"),
        (dict.fromkeys(range(10), b"no PNG"), "cannot identify image"),
        (dict.fromkeys(range(10), png((0, 0, 0), side=32)), "an image of 32x32, not 64x64"),
    ],
)
def test_another_archive_is_a_line(tmp_path, images, line):
    file = archive(tmp_path / "emoji.tgz", [entry(i) for i in range(10)], images)
    with pytest.raises(UserError, match=rf"not the archive that `npm pack [^`]*` fetches \(.*{line}.*fetch it again"):
        build(file)


def test_no_archive_is_a_line_with_the_command(tmp_path):
    with pytest.raises(UserError, match="wanted the archive that `npm pack emoji-datasource-google"):
        build(tmp_path / "nothing.tgz")
    (tmp_path / "broken.tgz").write_bytes(b"\x1f\x8b" + bytes(40))
    with pytest.raises(UserError, match="fetch it again"):
        build(tmp_path / "broken.tgz")
    with pytest.raises(UserError, match="wanted at least 10 emoji, found 1"):
        build(archive(tmp_path / "short.tgz", [entry(0)], {0: png((0, 0, 0))}))
