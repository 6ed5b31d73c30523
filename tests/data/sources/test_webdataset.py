"""Tars of WebDataset: a key is a sample, a tar is of one split, and what is cut or of no use is said."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from image_sources import TEXTS, captioned, png, write_tar

from dit_shd.core.errors import UserError
from dit_shd.data.sources.base import Selection
from dit_shd.data.sources.detect import open_source


@pytest.mark.parametrize("suffix", ["txt", "json"])
def test_tars_of_webdataset(tmp_path, suffix):
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for number, (name, text) in enumerate(TEXTS.items()):
            files = {"png": png(number), "cls": str(number).encode()}
            if text is not None:
                files[suffix] = text.encode() if suffix == "txt" else json.dumps({"caption": text}).encode()
            for kind, data in files.items():
                member = tarfile.TarInfo(f"set/{name}.{kind}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    for place in (tmp_path / "0.tar", tmp_path):
        source = captioned(place)
        assert source.captions == list(TEXTS.values())
        assert source.labels.tolist() == [0, 1, 2]
        assert source.raw(1) == png(1)
        assert source.name(1) == "0.tar/set/b"


def test_the_image_of_a_sample_is_not_its_depth_map(tmp_path):
    """Names in a tar are often sorted: 0.depth.png stands before 0.png."""
    members = {"0.cls": b"0", "0.depth.png": png(1), "0.png": png(2), "1.cls": b"1", "1.crop.png": png(3)}
    source = open_source(write_tar(tmp_path / "x.tar", members))
    assert [source.raw(number) for number in range(2)] == [png(2), png(3)]


def test_one_label_that_is_missing_does_not_make_all_images_one_class(tmp_path):
    members = {"0.cls": b"0", "0.png": png(0), "1.cls": b"1", "1.png": png(1), "2.png": png(2)}
    with pytest.raises(UserError, match=r"a \.cls for every image or for none, found 1 of 3 without one \(x\.tar/2"):
        open_source(write_tar(tmp_path / "x.tar", members))


def test_labels_from_1_are_said_to_leave_class_0_without_an_image(tmp_path):
    members = {"1.png": png(1), "1.cls": b"1", "2.png": png(2), "2.cls": b"2"}
    source = open_source(write_tar(tmp_path / "x.tar", members))
    assert source.labels.tolist() == [1, 2] and source.notes == ["classes without an image: 1 (0) of 3"]


def test_a_tar_that_is_cut_short_or_none(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(UserError, match="not a readable tar"):
        open_source(str(tmp_path / "x.tar"))


def test_a_tar_that_ends_too_early_is_refused_or_said(tmp_path):
    """tarfile takes all of these for the end, so that whatever stands behind it would be missing without a word."""
    members = {f"{number}.png": png(number) for number in range(5)}
    whole = Path(write_tar(tmp_path / "a.tar", members)).read_bytes()
    assert len(open_source(str(tmp_path / "a.tar"))) == 5 and "end mark" not in str(open_source(str(tmp_path)).notes)
    (block,) = {-(-len(data) // 512) * 512 + 512 for data in members.values()}
    damaged = bytearray(whole)
    damaged[2 * block + 150] ^= 255  # the checksum of the third header
    for broken, reason in (
        (whole + whole, "something stands behind its end"),
        (bytes(damaged), "something stands behind its end: a damaged header"),
        (whole[: 3 * block + 100], "it is cut short"),
    ):
        (tmp_path / "a.tar").write_bytes(broken)
        with pytest.raises(UserError, match=rf"not a readable tar \({reason}"):
            open_source(str(tmp_path / "a.tar"))
    (tmp_path / "a.tar").write_bytes(whole[: 3 * block])
    source = open_source(str(tmp_path / "a.tar"))
    assert len(source) == 3 and any("has no end mark" in note for note in source.notes)


def test_a_key_is_of_one_sample_with_one_image(tmp_path):
    twice = [("0.png", png(1)), ("0.txt", b"a dog"), ("0.PNG", png(2))]
    with pytest.raises(UserError, match=r"holds 0\.PNG twice; wanted a key of its own"):
        open_source(write_tar(tmp_path / "a.tar", twice))
    dots = {"photo.1.png": png(1), "photo.2.png": png(2), "other.png": png(3)}
    with pytest.raises(UserError, match=r"one image for each key, .* found photo\.1\.png, photo\.2\.png$"):
        open_source(write_tar(tmp_path / "a.tar", dots))
    mask = [("0.jpg", png(1)), ("0.png", png(2)), ("1.png", png(3)), ("1.jpg", png(4)), ("1.depth.jpg", png(5))]
    tar = write_tar(tmp_path / "a.tar", mask)
    with pytest.raises(UserError, match=r"found 0\.jpg, 0\.png: which one\? say image_column=jpg or png$"):
        open_source(tar)
    for place in (tar, str(tmp_path)):
        source = open_source(place, Selection(image_column="jpg"))
        assert [source.raw(number) for number in range(2)] == [png(1), png(4)]
    with pytest.raises(UserError, match=r"wanted images KEY\.webp \(image_column\) in the tars"):
        open_source(tar, Selection(image_column="webp"))


def test_tars_are_of_one_split_and_the_others_are_said(tmp_path):
    for name in ("train-0.tar", "val-0.tar", "train-1.tar"):
        write_tar(tmp_path / name, {"0.png": png(1)})
    (tmp_path / "x.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"has tars of splits \(train, validation\): which one\? say split=NAME"):
        open_source(str(tmp_path))
    source = open_source(str(tmp_path), Selection(split="train"))
    assert [source.name(number) for number in range(2)] == ["train-0.tar/0", "train-1.tar/0"]
    assert "left out: tars of other splits: 1 (val-0.tar)" in source.notes
    assert any(".gz" in note for note in source.notes)
    with pytest.raises(UserError, match=r"has no tars of test; there are some of train, validation"):
        open_source(str(tmp_path), Selection(split="test"))


def test_tars_whose_names_are_of_no_split_are_for_training_beside_others(tmp_path):
    for name in ("00000.tar", "00001.tar", "val-00000.tar"):
        write_tar(tmp_path / name, {"0.png": png(1)})
    for split in (None, "train"):
        source = open_source(str(tmp_path), Selection(split))
        assert [source.name(number) for number in range(len(source))] == ["00000.tar/0", "00001.tar/0"]
        assert "left out: tars of other splits: 1 (val-00000.tar)" in source.notes
    source = open_source(str(tmp_path), Selection("val"))
    assert [source.name(number) for number in range(len(source))] == ["val-00000.tar/0"]
    (tmp_path / "val-00000.tar").unlink()
    assert len(open_source(str(tmp_path))) == 2


def test_what_a_tar_holds_beside_files_is_said(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("a/0.png", "b/0.png"):
            member = tarfile.TarInfo(name)
            member.size = len(png(1))
            archive.addfile(member, io.BytesIO(png(1)))
        link = tarfile.TarInfo("b/1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "0.png"
        archive.addfile(link)
    notes = open_source(str(tmp_path / "a.tar")).notes
    assert "left out: links in a.tar: 1 (b/1.png)" in notes
    assert any("2 folders in tars are no classes" in note for note in notes)
