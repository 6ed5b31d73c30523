"""Remarks on images."""

import numpy as np
import pytest
from encoded import encode, pictures
from image_sources import pngs
from PIL import Image, ImageCms
from png16 import deep_png

from dit_shd.data.image_folders import FolderImages
from dit_shd.data.latent_shards import read_index
from dit_shd.data.preprocessing import pixels
from dit_shd.data.sources.decoding import PROFILE, TURNED


def test_remarks_are_counted_over_shards_and_kept(tmp_path, caplog):
    root = pngs(tmp_path / "set", *(f"a/{i}.png" for i in range(3)))
    values = np.random.default_rng(0).integers(0, 2**16, (8, 8, 3), dtype=np.uint16)
    for i in range(3, 6):
        (root / "a" / f"{i}.png").write_bytes(deep_png(values))
    Image.fromarray(pictures(1)[0]).save(root / "a" / "6.png", format="jpeg")
    Image.fromarray(pictures(1)[0]).save(root / "a" / "7.png", format="webp")
    Image.fromarray(pictures(1)[0]).save(root / "a" / "8.png", format="webp", lossless=True)
    lying = Image.Exif()
    lying[0x0112] = 6  # a telephone held upright
    Image.fromarray(pictures(1)[0]).save(root / "a" / "9.jpg", exif=lying)
    (root / "b").mkdir()
    (root / "b" / "broken.png").write_text("x")
    out = encode(root, tmp_path / "l", shard_size=4)
    wanted = [
        "2 JPEG or lossy WebP by their contents, not by their names (a/6.png, ...)",
        "3 of 16 bits a channel, rounded to 8 (a/3.png, ...)",
        f"1 {TURNED} (a/9.jpg, ...)",
        "classes of which no image could be read: 1 (b)",
    ]
    assert read_index(out).about["notes"] == wanted
    assert all(note in caplog.text for note in wanted)
    encode(root, out, shard_size=4)
    assert read_index(out).about["notes"] == wanted, "the same command again verifies the shards"


def test_rotations_of_cameras_are_noted_of_a_folder_that_is_evaluated(tmp_path):
    for number, orientation in enumerate((1, 8)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pictures(1)[0]).save(tmp_path / f"{number}.jpg", exif=exif)
    assert f"of 2 images 1 (1.jpg) are {TURNED}" in FolderImages(tmp_path, "x").notes


def profile(name):
    """littlecms's sRGB under another name of as many letters."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    named = srgb.replace("sRGB built-in".encode("utf-16-be"), name.encode("utf-16-be"))
    assert name == "sRGB built-in" or named != srgb
    return named


@pytest.mark.parametrize(
    ("suffix", "mode"), [("png", "L"), ("png", "RGB"), ("jpg", "L"), ("jpg", "RGB"), ("jpg", "CMYK"), ("webp", "RGB")]
)
@pytest.mark.parametrize(
    ("made", "noted"),
    [
        (lambda: profile("Adobe RGB (98"), True),
        (lambda: profile("sRGB built-in"), False),
        (lambda: profile("sRGB built-in")[:200], False),
        (lambda: b"no profile", False),
        (lambda: None, False),
    ],
)
def test_colour_profiles_other_than_srgb_are_noted_and_damaged_ones_are_none(tmp_path, suffix, mode, made, noted):
    file = tmp_path / f"0.{suffix}"
    image = Image.fromarray(pictures(1)[0]).convert(mode)
    image.save(file, **({} if (icc := made()) is None else {"icc_profile": icc}))
    assert pixels(file, 8)[1] == ((PROFILE,) if noted else ())
    assert (f"of 1 images 1 (0.{suffix}) are {PROFILE}" in FolderImages(tmp_path, "x", (8, 8, 3)).notes) == noted
