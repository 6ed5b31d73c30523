"""Documents out of files and tables."""

import importlib
import json

import pytest

from dit_shd.core.errors import UserError
from dit_shd.core.places import HubName
from dit_shd.data.document_rows import Columns, Document
from dit_shd.data.documents import read_documents
from dit_shd.data.sources.splits import split_at_end

PROMPT = "Q: {question}\nA: "


def texts(documents):
    return [document.text for document in documents]


@pytest.mark.parametrize(
    ("unit", "count"), [("file", ["a b\nc\n\n\nd\n"]), ("line", ["a b", "c", "d"]), ("paragraph", ["a b\nc", "d"])]
)
def test_units_of_a_text_file(tmp_path, unit, count):
    (tmp_path / "a.txt").write_text("a b\nc\n\n\nd\n")
    assert texts(read_documents(str(tmp_path / "a.txt"), unit, Columns())) == count


def test_lines_end_where_editors_end_them_and_no_mark_is_a_letter(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffa\u2028b\x0cc\r\nd".encode())
    assert texts(read_documents(str(tmp_path / "a.txt"), "line", Columns())) == ["a\u2028b\x0cc", "d"]
    (tmp_path / "a.jsonl").write_bytes('\ufeff{"text": "a"}'.encode())
    assert texts(read_documents(str(tmp_path / "a.jsonl"), "file", Columns())) == ["a"]


@pytest.mark.parametrize("name", ["a.JSONL", "a.ndjson", "a.jsonlines"])
def test_json_lines_are_known_by_each_of_their_names(tmp_path, name):
    (tmp_path / name).write_text('{"text": "a"}\n')
    for place in (tmp_path / name, tmp_path):
        assert texts(read_documents(str(place), "file", Columns())) == ["a"]


def test_what_of_a_folder_is_not_read_is_said(tmp_path, caplog):
    for name in ("a.TXT", "b.json", "c.jsonl.gz", "d.rst", ".hidden"):
        (tmp_path / name).write_text("x")
    assert texts(read_documents(str(tmp_path), "file", Columns())) == ["x"]
    (message,) = caplog.messages
    assert "not read, since only .txt" in message and "3 (b.json, c.jsonl.gz, d.rst)" in message


def test_a_folder_that_is_a_link_is_read_and_once(tmp_path, caplog):
    for name in ("store/b.txt", "corpus/a.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    (tmp_path / "corpus" / "link").symlink_to(tmp_path / "store")
    (tmp_path / "corpus" / "round").symlink_to(tmp_path / "corpus")
    assert texts(read_documents(str(tmp_path / "corpus"), "file", Columns())) == ["corpus/a.txt", "store/b.txt"]
    assert "not read: 1 (round), links to folders that are here anyway" in caplog.text


def test_a_column_may_have_any_name_and_half_a_letter_is_none(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a", "input text": "b"}')
    (found,) = read_documents(str(file), "file", Columns(prompt='{"q": {input text}} '))
    assert found.prompt == '{"q": b} '
    for cut in (r'"a\ud83d"', r'["a\ud83d", "b"]', r'["b", "a\ud83d"]'):
        file.write_text('{"text": ' + cut + "}")
        with pytest.raises(UserError, match=r"a\.jsonl:1: text: wanted text, found half a letter"):
            read_documents(str(file), "file", Columns())


def test_a_folder_is_its_files_by_name(tmp_path):
    (tmp_path / "b.md").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.jsonl").write_text('{"text": "third"}\n\n{"text": "fourth"}\n')
    (tmp_path / "picture.png").write_bytes(b"no text")
    assert texts(read_documents(str(tmp_path), "file", Columns())) == ["first", "second", "third", "fourth"]


def test_a_text_in_json_lines_may_hold_what_unicode_calls_ends_of_lines(tmp_path):
    words = ["one\u2028two", "three\u0085four", "five\u000csix"]
    rows = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\r\n" for text in words)
    (tmp_path / "a.jsonl").write_bytes(rows.encode())
    assert texts(read_documents(str(tmp_path / "a.jsonl"), "file", Columns())) == words


def test_files_of_other_splits_are_left_out(tmp_path, caplog):
    """A folder as the hub has it: what is to be tested on is not learned, nor the page about it."""
    for name in ("train-00000", "train-00001", "validation-00000", "test-00000"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.txt").write_text("hidden")
    assert texts(read_documents(str(tmp_path), "file", Columns())) == ["train-00000", "train-00001"]
    assert "left out: 2 (test-00000.jsonl, validation-00000.jsonl)" in caplog.text
    assert texts(read_documents(str(tmp_path), "file", Columns(), "val")) == ["validation-00000"]
    assert len(read_documents(str(tmp_path), "file", Columns(), "all")) == 4
    with pytest.raises(UserError, match="has files of test, train, validation and none of extra"):
        read_documents(str(tmp_path), "file", Columns(), "extra")


def test_what_only_a_held_out_split_is_named_beside_is_to_be_learned(tmp_path, caplog):
    for name in ("corpus", "corpus_test", "news_test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    assert texts(read_documents(str(tmp_path), "file", Columns())) == ["corpus"]
    assert "left out: 2 (corpus_test.jsonl, news_test.jsonl) (data.hub_split; all reads every file)" in caplog.text
    assert texts(read_documents(str(tmp_path), "file", Columns(), "test")) == ["corpus_test", "news_test"]
    assert len(read_documents(str(tmp_path), "file", Columns(), "all")) == 3
    (tmp_path / "corpus.jsonl").unlink()
    assert texts(read_documents(str(tmp_path), "file", Columns())) == ["corpus_test", "news_test"]
    assert "its files are of test by their names, and are read" in caplog.text


def test_the_suffixes_of_public_corpora_are_splits(tmp_path):
    for name in ("bnc_spoken.train", "childes.train", "bnc_spoken.dev", "wiki.test.tokens", "wiki.train.raw"):
        (tmp_path / name).write_text(name)
    assert texts(read_documents(str(tmp_path), "file", Columns())) == [
        "bnc_spoken.train",
        "childes.train",
        "wiki.train.raw",
    ]
    assert texts(read_documents(str(tmp_path), "file", Columns(), "dev")) == ["bnc_spoken.dev"]
    assert texts(read_documents(str(tmp_path), "file", Columns(), "test")) == ["wiki.test.tokens"]
    assert texts(read_documents(str(tmp_path / "bnc_spoken.dev"), "file", Columns(), "dev")) == ["bnc_spoken.dev"]


def test_a_title_is_no_split(tmp_path):
    names = ["The Test of Time", "Strength Training", "The Test", "eval_harness", "a"]
    for name in names:
        (tmp_path / f"{name}.txt").write_text(name)
    assert sorted(texts(read_documents(str(tmp_path), "file", Columns()))) == sorted(names)
    assert [
        split_at_end(name) for name in ("train_10M", "train-00000-of-00002", "wiki.valid", "val2017", "babylm_dev")
    ] == ["train", "train", "validation", "validation", "validation"]


def test_a_held_out_split_that_no_name_says_is_refused(tmp_path):
    """Else a figure of test text would be one of the text that was learned."""
    folder = tmp_path / "corpus"
    (folder / "test").mkdir(parents=True)
    for name in ("train-0.jsonl", "test/a.jsonl"):
        (folder / name).write_text(json.dumps({"text": name}) + "\n")
    assert texts(read_documents(str(folder / "test"), "file", Columns(), "test")) == ["test/a.jsonl"]
    assert texts(read_documents(str(folder / "test" / "a.jsonl"), "file", Columns(), "test")) == ["test/a.jsonl"]
    with pytest.raises(UserError, match=r"data\.hub_split: no name in .*train-0\.jsonl' says that it is of test"):
        read_documents(str(folder / "train-0.jsonl"), "file", Columns(), "test")
    (folder / "test" / "a.jsonl").unlink()
    with pytest.raises(UserError, match=r"data\.hub_split: .* has files of train and none of val"):
        read_documents(str(folder), "file", Columns(), "val")
    (folder / "train-0.jsonl").rename(folder / "a.jsonl")
    assert texts(read_documents(str(folder), "file", Columns())) == ["train-0.jsonl"]
    with pytest.raises(UserError, match=r"data\.hub_split: no name in '.*corpus' says that it is of test"):
        read_documents(str(folder), "file", Columns(), "test")


@pytest.mark.parametrize(
    ("split", "name"),
    [("train", "train"), (None, "of no name"), ("validation", "validation"), ("train+x", r"train\+x")],
)
def test_a_saved_dataset_of_one_split_is_of_no_other(tmp_path, split, name, caplog):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a"]}, split=split).save_to_disk(tmp_path / "saved")
    place = str(tmp_path / "saved")
    assert texts(read_documents(place, "file", Columns())) == ["a"]
    assert ("it is one split, validation, and is read" in caplog.text) == (split == "validation")
    with pytest.raises(UserError, match=rf"data\.hub_split: .*saved' is one split \({name}\), not test"):
        read_documents(place, "file", Columns(), "test")


def test_a_file_of_the_hub_is_not_passed_over_elsewhere(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"hub_file: is of hub:OWNER/NAME; of .* say data.path=.*/b\.txt"):
        read_documents(str(tmp_path), "file", Columns(), file="b.txt")


def test_a_table_is_not_read_as_text(tmp_path):
    """Nor a text where columns are named: the prompt of a text beside the table would be missing."""
    (tmp_path / "a.json").write_text('[{"text": "x"}]')
    with pytest.raises(UserError, match=r"wanted text, JSON lines \(.jsonl\) or Parquet"):
        read_documents(str(tmp_path / "a.json"), "file", Columns())
    (tmp_path / "a.json").unlink()
    (tmp_path / "a.txt").write_text("about")
    (tmp_path / "x.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(UserError, match=r"column and prompt are of tables .*a\.txt' is text"):
        read_documents(str(tmp_path), "file", Columns(prompt="Q: "))


ROWS = [{"question": "1 + 1?", "answer": "2", "id": 1}, {"question": "Ok?", "answer": "Yes {id}", "id": 2}]


def saved_in(folder, kind):
    """The rows as JSON lines, Parquet, or one split of a saved dataset."""
    if kind == "jsonl":
        (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        return folder / "x.jsonl"
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    if kind == "parquet":
        data.to_parquet(folder / "x.parquet")
        return folder / "x.parquet"
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(folder / "saved")
    return folder / "saved"


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
def test_columns_of_tables(tmp_path, kind):
    place = str(saved_in(tmp_path, kind))
    found = read_documents(place, "file", Columns("answer", PROMPT))
    first, second = ((0, 3), (9, 13)), ((0, 3), (6, 10))  # what of the prompt is the template's
    assert found == [Document("2", "Q: 1 + 1?\nA: ", (), first), Document("Yes {id}", "Q: Ok?\nA: ", (), second)]
    with pytest.raises(UserError, match=r"a column 'text', found question, answer, id; data\.column=NAME says"):
        read_documents(place, "file", Columns())
    with pytest.raises(UserError, match=r"id: wanted text, found int"):
        read_documents(place, "file", Columns("id"))
    if kind == "saved":
        with pytest.raises(UserError, match=r"data\.hub_split: .* has no split 'dev', it has train, test"):
            read_documents(place, "file", Columns("answer"), "dev")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
def test_rows_without_text_are_left_out_and_counted(tmp_path, kind, caplog):
    rows = [{"text": text, "q": q} for text, q in (("a", "1"), (None, "2"), ("b", ""), (" \n", "4"))]
    place = tmp_path / f"x.{kind}"
    if kind == "jsonl":
        place.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        importlib.import_module("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), place)
    else:
        pytest.importorskip("datasets").Dataset.from_list(rows).save_to_disk(str(place))
    documents = read_documents(str(place), "file", Columns(prompt="{q}: "))
    assert documents == [Document("a", "1: ", (), ((1, 3),)), Document("b", ": ", (), ((0, 2),))]
    first = f"{place}:2" if kind == "jsonl" else f"{place}[1]"
    assert caplog.messages == [f"data: '{place}': left out: 2 of 4 rows without text ({first}, ...)"]
    with pytest.raises(UserError, match="q: wanted text, found NoneType"):  # an answer to no question
        Columns(prompt="{q}: ").document({"text": "b", "q": None}, "x")


def test_one_file_of_a_repository(tmp_path, monkeypatch):
    (tmp_path / "valid.jsonl").write_text('{"text": "a"}')
    monkeypatch.setattr(HubName, "file", lambda self, name: tmp_path / name if name == "valid.jsonl" else None)
    monkeypatch.setattr(HubName, "files", lambda self: ["valid.jsonl", "valid.txt"])
    assert texts(read_documents("hub:a/b", "file", Columns(), file="valid.jsonl")) == ["a"]
    with pytest.raises(UserError, match=r"data\.hub_file: hub:a/b: wanted its file 'x\.jsonl', found none"):
        read_documents("hub:a/b", "file", Columns(), file="x.jsonl")


def test_several_right_answers(tmp_path):
    rows = [{"q": "?", "a": ["yes", "sure"]}, {"q": "!", "a": ["no"]}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_documents(str(tmp_path / "x.jsonl"), "file", Columns("a", "{q}"))
    assert found == [Document("yes", "?", ("sure",)), Document("no", "!")]
    (tmp_path / "x.jsonl").write_text('{"a": ["yes", 1]}')
    with pytest.raises(UserError, match=r"a: wanted text, found list"):
        read_documents(str(tmp_path / "x.jsonl"), "file", Columns("a"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", None, r"data\.path: wanted text, found nothing at"),
        ("a.txt", b" \n", r"data\.path: wanted text, '.*' holds none"),
        ("a.txt", b"\xff\xfe", r"wanted text in UTF-8"),
        ("a.jsonl", b"{", r"a\.jsonl:1: wanted a JSON object"),
        ("a.jsonl", b"[1]", r"a\.jsonl:1: wanted a JSON object, found list"),
        ("a.parquet", b"PAR1", r"not readable as Parquet"),
        ("folder/a.png", b"", r"wanted files ending in .* has none"),
    ],
)
def test_what_is_no_text_is_refused_in_a_line(tmp_path, name, content, message):
    file = tmp_path / name
    if content is not None:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    place = file.parent if name.startswith("folder") else file
    with pytest.raises(UserError, match=message) as error:
        read_documents(str(place), "file", Columns())
    assert "\n" not in str(error.value)


def test_a_name_of_the_hub_without_a_network():
    with pytest.raises(UserError, match=r"data\.path: hub:someone/nothing: .* not in the local cache"):
        read_documents("hub:someone/nothing", "file", Columns())
    with pytest.raises(UserError, match=r"data\.path: hub:someone/nothing: .* not in the local cache"):
        read_documents("hub:someone/nothing", "file", Columns(), file="valid.jsonl")
    with pytest.raises(UserError, match=r"data\.path: wanted hub:OWNER/NAME"):
        read_documents("hub:../x", "file", Columns())
