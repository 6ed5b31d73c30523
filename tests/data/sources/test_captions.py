import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from dit_shd.core.errors import UserError
from dit_shd.data.sources.base import BrokenImage, Selection
from dit_shd.data.sources.captions import Captioned
from dit_shd.data.sources.detect import open_source

TEXTS = {"a": "a thin seven", "b": "two digits", "c": None}


def png(number):
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(stream, "png")
    return stream.getvalue()


def captioned(place, column=None):
    source = open_source(str(place))
    return Captioned(source, source.texts(column))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "images"
    path.mkdir()
    for number, name in enumerate(TEXTS):
        (path / f"{name}.png").write_bytes(png(number))
    return path


def write_txt(folder):
    for name, text in TEXTS.items():
        if text is not None:
            (folder / f"{name}.txt").write_text(f"{text}\n")


def write_json(folder):
    for name, text in TEXTS.items():
        if text is not None:
            (folder / f"{name}.json").write_text(json.dumps({"prompt": text, "width": 4}))


def write_metadata(folder):
    rows = [{"file_name": f"{name}.png", "text": text} for name, text in TEXTS.items() if text is not None]
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.mark.parametrize("write", [write_txt, write_json, write_metadata])
def test_captions_of_a_folder(folder, write):
    write(folder)
    source = captioned(folder)
    assert source.captions == list(TEXTS.values())
    assert source.raw(0).name == "a.png"
    with pytest.raises(BrokenImage, match="it has no caption"):
        source.raw(2)
    assert source.notes[-1] == "left out: 1 images without a caption (c.png, ...)"


@pytest.mark.parametrize("name", ["a.txt", "metadata.jsonl", "metadata.csv", "a.json"])
def test_a_byte_order_mark_is_no_letter(folder, name):
    content = {
        "a.txt": "seven",
        "a.json": '{"text": "seven"}',
        "metadata.jsonl": '{"file_name": "a.png", "text": "seven"}\n',
        "metadata.csv": "file_name,text\na.png,seven\n",
    }
    (folder / name).write_bytes(b"\xef\xbb\xbf" + content[name].encode())
    assert captioned(folder).captions == ["seven", None, None]


def test_images_with_several_captions_are_counted(folder):
    write_metadata(folder)
    with (folder / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file_name": "a.png", "text": "another seven"}) + "\n")
        file.write(json.dumps({"file_name": "b.png", "text": TEXTS["b"]}) + "\n")
    source = captioned(folder)
    assert source.captions == ["another seven", TEXTS["b"], None]
    assert "1 images have several captions in metadata; the last of each is taken" in source.notes


def test_tables_and_saved_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [png(number) for number in range(3)], "caption": [[t, "x"] if t else None for t in TEXTS.values()]}
    data = datasets.Dataset.from_dict(rows)
    data.to_parquet(tmp_path / "data.parquet")
    data.save_to_disk(tmp_path / "saved")
    for place in ("data.parquet", "saved"):
        assert captioned(tmp_path / place).captions == list(TEXTS.values())
        with pytest.raises(UserError, match=r"has no column words, it has image, caption; say caption_column=NAME"):
            captioned(tmp_path / place, "words")


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


def write_tar(file, members):
    with tarfile.open(file, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return str(file)


def test_the_image_of_a_sample_is_not_its_depth_map(tmp_path):
    """Names in a tar are often sorted: 0.depth.png stands before 0.png."""
    members = {"0.cls": b"0", "0.depth.png": png(1), "0.png": png(2), "1.cls": b"1", "1.crop.png": png(3)}
    source = open_source(write_tar(tmp_path / "x.tar", members))
    assert [source.raw(number) for number in range(2)] == [png(2), png(3)]


def test_one_label_that_is_missing_does_not_make_all_images_one_class(tmp_path):
    members = {"0.cls": b"0", "0.png": png(0), "1.cls": b"1", "1.png": png(1), "2.png": png(2)}
    with pytest.raises(UserError, match=r"a \.cls for every image or for none, found 1 of 3 without one \(x\.tar/2"):
        open_source(write_tar(tmp_path / "x.tar", members))


def test_a_tar_that_is_cut_short_or_none(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(UserError, match="not a readable tar"):
        open_source(str(tmp_path / "x.tar"))


def test_no_captions_at_all(folder, tmp_path):
    with pytest.raises(
        UserError, match=r"wanted captions, found none for any of 3 images; they are read from IMAGE.txt"
    ):
        captioned(folder)
    np.savez(tmp_path / "x.npz", np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(UserError, match="wanted a source with captions"):
        captioned(tmp_path / "x.npz")


def test_other_captions_are_another_source(folder):
    write_txt(folder)
    before = captioned(folder).sha256()
    assert captioned(folder).sha256() == before
    (folder / "a.txt").write_text("a thin eight")
    assert captioned(folder).sha256() != before
    assert open_source(str(folder), Selection()).sha256() == open_source(str(folder)).sha256()
