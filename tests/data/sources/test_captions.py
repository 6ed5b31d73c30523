import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from image_sources import write_tables
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
        for name, data in members.items() if isinstance(members, dict) else members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return str(file)


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


def test_metadata_of_captions_are_not_called_unused(folder):
    write_metadata(folder)
    assert any("has no column of labels" in note for note in open_source(str(folder)).notes)
    assert not any("is not used" in note for note in captioned(folder).notes)


def beside_folders(root):
    for name in ("x/0", "y/0", "loose"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / f"{name}.png").write_bytes(png(1))
        (root / f"{name}.txt").write_text("a")


def one_number(root):
    for name in ("01", "1"):
        (root / name).mkdir()
        (root / name / "0.png").write_bytes(png(1))
        (root / name / "0.txt").write_text("a")


def metadata(*labels):
    def write(root):
        for number in range(len(labels)):
            (root / f"{number}.png").write_bytes(png(number))
        rows = [{"file_name": f"{number}.png", "text": "a", "label": label} for number, label in enumerate(labels)]
        (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))

    return write


def parquet(*labels):
    def write(root):
        pa = pytest.importorskip("pyarrow")
        from pyarrow.parquet import write_table

        count = len(labels)
        write_table(pa.table({"image": [png(1)] * count, "text": ["a"] * count, "label": labels}), root / "a.parquet")

    return write


def saved(*labels):
    def write(root):
        datasets = pytest.importorskip("datasets")
        rows = {"image": [{"bytes": png(1), "path": None}] * len(labels), "text": ["a"] * len(labels)}
        data = datasets.Dataset.from_dict({**rows, "labels": labels}).cast_column("image", datasets.Image())
        data.save_to_disk(str(root))

    return write


def tar_of_classes(*labels):
    def write(root):
        files = {f"{i}.{kind}": data for i, cls in enumerate(labels) for kind, data in
                 (("png", png(i)), ("txt", b"a"), ("cls", cls))}  # fmt: skip
        write_tar(root / "a.tar", files)

    return write


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (beside_folders, "images in class folders or without any"),
        (one_number, "classes of different numbers"),
        (metadata("cat", "", "cat"), "a row without file_name or label"),
        (metadata([1, 2], [1]), "whole numbers or texts as labels throughout, found list"),
        (parquet(0.1, 0.2), "found float"),
        (parquet(1, None), "found NoneType"),
        (saved([0, 1], [1], []), "found list"),
        (tar_of_classes(b"cat", b"dog"), "a whole number in each .cls"),
    ],
)
def test_labels_that_cannot_be_read_are_no_fault_where_captions_are_wanted(tmp_path, write, reason):
    write(tmp_path)
    with pytest.raises(UserError, match=reason):
        open_source(str(tmp_path))
    source = open_source(str(tmp_path), Selection(labels=False))
    assert source.classes == ("all",) and not source.labels.any() and len(source.labels) == len(source)
    assert Captioned(source, source.texts(None)).captions == ["a"] * len(source)
    (note,) = [note for note in source.notes if note.startswith("labels are not used, all images are of one class: ")]
    assert reason in note and source.raw(0) and source.sha256()


@pytest.mark.parametrize(
    "write", [metadata("cat", "dog"), parquet(1, 0), saved("cat", "dog"), tar_of_classes(b"1", b"0")]
)
def test_a_set_whose_labels_can_be_read_is_the_same_one_where_captions_are_wanted(tmp_path, write):
    """It goes on where it was begun."""
    write(tmp_path)
    one, other = (open_source(str(tmp_path), Selection(labels=labels)) for labels in (True, False))
    assert one.classes == other.classes and len(one.classes) == 2 and one.sha256() == other.sha256()


def test_a_column_of_labels_that_is_named_is_read_or_refused(tmp_path):
    parquet(0.1, 0.2)(tmp_path)
    with pytest.raises(UserError, match="found float"):
        open_source(str(tmp_path), Selection(label_column="label", labels=False))


def test_tables_with_other_names_of_classes_are_one_set_where_captions_are_wanted(tmp_path):
    write_tables(tmp_path, {"0.parquet": 0, "1.parquet": 1}, {"0.parquet": ["a", "b"], "1.parquet": ["b", "a"]})
    with pytest.raises(UserError, match="the same names of classes"):
        open_source(str(tmp_path))
    assert open_source(str(tmp_path), Selection(labels=False)).classes == ("all",)
