"""Captions of images: of files beside them, of tables and of saved datasets."""

import json
import tarfile

import numpy as np
import pytest
from image_sources import TEXTS, captioned, png, write_tar

from dit_shd.core.errors import UserError
from dit_shd.data.sources.base import BrokenImage, Selection
from dit_shd.data.sources.detect import open_source


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
    assert source.notes[-1] == "left out: 1 images without a caption (c.png)"


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
        source = captioned(tmp_path / place)
        assert source.captions == list(TEXTS.values())
        assert "2 images have lists of several captions; the first of each is taken" in source.notes
        with pytest.raises(UserError, match=r"has no column words, it has image, caption; say caption_column=NAME"):
            captioned(tmp_path / place, "words")


@pytest.mark.parametrize("tar", [False, True])
def test_a_caption_column_is_of_json_where_a_text_stands_beside_it(folder, tmp_path, tar):
    """img2dataset writes alt texts into KEY.txt; recaptions are keys of KEY.json."""
    (folder / "a.txt").write_text("alt text")
    (folder / "a.json").write_text(json.dumps({"caption": "alt text", "blip": "a thin seven"}))
    (folder / "b.txt").write_text("alt text")
    (folder / "c.json").write_text(json.dumps("no object"))
    place = folder
    if tar:
        files = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
        place = write_tar(tmp_path / "a.tar", files)
    assert captioned(place).captions == ["alt text", "alt text", "no object"]
    source = captioned(place, "blip")
    assert source.captions == ["a thin seven", None, None]
    assert any(note.startswith("left out: 2 images without a caption") for note in source.notes)
    with pytest.raises(UserError, match=r"caption_column: none of 3 images in '.*' has llava in (IMAGE|KEY)\.json"):
        captioned(place, "llava")


def test_files_of_captions_are_of_any_case(folder):
    """IMG.TXT, as of cameras and Windows, beside an image whose suffix may be of any case, too."""
    (folder / "a.TXT").write_text("a thin seven")
    (folder / "b.Json").write_text(json.dumps({"text": "two digits"}))
    source = captioned(folder)
    assert source.captions == [*TEXTS.values()]
    assert not any("no images" in note for note in source.notes)


@pytest.mark.parametrize("tar", [False, True])
def test_an_empty_caption_hides_no_other(folder, tmp_path, tar):
    (folder / "a.txt").write_text(" \n")
    for name in "ab":
        (folder / f"{name}.json").write_text(json.dumps({"text": None, "captions": ["", "there"], "prompt": "no"}))
    place = folder
    if tar:
        place = write_tar(tmp_path / "a.tar", {file.name: file.read_bytes() for file in sorted(folder.iterdir())})
    assert captioned(place).captions == ["there", "there", None]


@pytest.mark.parametrize("kind", ["folder", "metadata", "tar"])
def test_lists_of_captions_and_captions_of_several_lines_are_counted(folder, tmp_path, kind):
    for name in "ab":
        (folder / f"{name}.json").write_text(json.dumps(["a bird", "it has wings"][: 2 if name == "a" else 1]))
    (folder / "c.txt").write_text("a bird is red\nit has wings\n")
    place = folder
    if kind == "metadata":
        (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": ["a bird", "it has wings"]}\n')
    if kind == "tar":
        place = write_tar(tmp_path / "a.tar", {file.name: file.read_bytes() for file in sorted(folder.iterdir())})
    source = captioned(place)
    assert source.captions == ["a bird", "a bird", "a bird is red\nit has wings"]
    assert "1 images have lists of several captions; the first of each is taken" in source.notes
    (note,) = [note for note in source.notes if "lines" in note]
    assert note.startswith("1 captions are of several lines, each of them one caption (") and "c" in note


def test_a_caption_is_whole_or_refused(folder, tmp_path):
    (folder / "metadata.csv").write_text("file_name,text\na.png,a red, shiny car\n")
    with pytest.raises(UserError, match=r"more or fewer cells than the head has names: quote texts with commas"):
        captioned(folder)
    (folder / "metadata.csv").write_text("file_name,text\na.png,7\nb.png,3\n")
    assert captioned(folder).captions == ["7", "3", None]
    (folder / "metadata.csv").unlink()
    (folder / "a.json").write_text(r'{"text": "a \ud83d"}')
    source = captioned(folder)
    assert source.captions[0] == "a \ufffd" and source.sha256()


@pytest.mark.parametrize("tar", [False, True])
@pytest.mark.parametrize("content", ["", '{"te', "[" * 200_000])
def test_a_caption_that_cannot_be_read_is_counted_and_left_out(folder, tmp_path, tar, content):
    """As a killed downloader leaves it."""
    for name, text in (("a", '{"text": "a thin seven"}'), ("b", content), ("c", content)):
        (folder / f"{name}.json").write_text(text)

    def source(column=None):
        files = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
        return captioned(write_tar(tmp_path / "x.tar", files) if tar else folder, column)

    assert source().captions == ["a thin seven", None, None]
    (note,) = [note for note in source().notes if "cannot be read" in note]
    assert note.startswith(f"2 captions cannot be read ({'x.tar/' if tar else ''}b.json: wanted JSON, ")
    assert note.endswith(", ...)")
    (folder / "a.json").write_text(content)
    for column in (None, "text"):
        with pytest.raises(UserError, match=r"found none for any of 3 images; 3 captions cannot be read \(.*a\.json: "):
            source(column)


def test_a_text_that_is_no_caption_by_its_size_is_counted_and_another_taken(folder):
    for name in "ab":
        (folder / f"{name}.txt").write_bytes(b"x" * (2**20 + 1))
    (folder / "b.json").write_text('"two digits"')
    (folder / "c.txt").write_text("three")
    source = captioned(folder)
    assert source.captions == [None, "two digits", "three"]
    assert "2 captions cannot be read (a.txt: wanted 1048576 bytes at most, found 1048577, ...)" in source.notes


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


@pytest.mark.parametrize("tar", [False, True])
def test_captions_that_are_not_utf_8_are_counted(folder, tmp_path, tar):
    (folder / "a.txt").write_bytes("a caf\u00e9".encode("latin-1"))
    (folder / "b.txt").write_text("a caf\u00e9", encoding="utf-8")
    if tar:
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            for file in sorted(folder.iterdir()):
                archive.add(file, file.name)
    source = captioned(tmp_path / "a.tar" if tar else folder)
    assert source.captions == ["a caf\ufffd", "a caf\u00e9", None]
    (note,) = [note for note in source.notes if "UTF-8" in note]
    assert note.startswith("1 captions are not UTF-8 throughout, and have \ufffd where they are not (") and "a" in note


def test_images_that_metadata_names_and_that_are_not_there_are_counted(folder):
    """A download that broke off had been taken for the whole."""
    names = [*sorted(path.name for path in folder.iterdir()), "gone.png", "lost.png"]
    rows = [json.dumps({"file_name": name, "text": name}) for name in names]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    source = captioned(folder)
    assert [note for note in source.notes if "missing" in note] == [
        "missing: 2 (gone.png, lost.png) images that metadata.jsonl names"
    ]


def test_metadata_of_captions_are_not_called_unused(folder):
    write_metadata(folder)
    assert any("has no column of labels" in note for note in open_source(str(folder)).notes)
    assert not any("is not used" in note for note in captioned(folder).notes)
