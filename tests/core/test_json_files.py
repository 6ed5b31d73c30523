import json

import pytest

from dit_shd.core.json_files import cut_last_lines, read_last_lines, read_lines, read_object


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff{}", b"[" * 100_000, None])
def test_what_is_no_object_is_nothing(content, tmp_path):
    file = tmp_path / "x.json"
    if content is not None:
        file.write_bytes(content)
    assert read_object(file) is None and read_object(tmp_path) is None


def test_an_object_is_as_it_was_written(tmp_path):
    values = {"ü": [1, {"a": None}], "b": 2.5}
    (tmp_path / "x.json").write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    assert read_object(tmp_path / "x.json") == values


def test_half_a_line_of_a_log_is_left_out(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert read_lines(file) == []
    file.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_lines(file) == [{"step": 1}]
    file.write_bytes(b'{"step": 1}\n{"step": 2, "lo{"step": 2}\n3\n{"\xff": 1}\n{"step": 3}\n')
    assert read_lines(file) == [{"step": 1}, {"step": 3}]
    file.write_bytes(b"[" * 100_000 + b'\n\0\0{"step": 1}\n{"step": 2}\n')
    assert read_lines(file) == [{"step": 2}]


@pytest.mark.parametrize("size", [1, 3000])
def test_the_last_lines_of_a_log_are_read_from_its_end(tmp_path, size):
    """Of lines that are longer than a block, too; what a kill left half written is none of them."""
    rows = [{"step": step, "text": "x" * size} for step in range(100)]
    file = tmp_path / "log.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 100, "te')
    for count in (1, 3, 99, 100, 500):
        assert read_last_lines(file, count) == rows[-count:]
    assert read_last_lines(tmp_path / "none.jsonl", 3) == []


@pytest.mark.parametrize(("torn", "last"), [("", 5), ('{"step": 9', 5), ("", 9), ('{"step": 9', 9), ("nonsense\n", -1)])
def test_the_end_of_a_log_is_cut_off(tmp_path, torn, last):
    rows = [json.dumps({"step": step}) + "\n" for step in range(9)]
    file = tmp_path / "log.jsonl"
    file.write_text("".join(rows) + torn)
    cut_last_lines(file, lambda row: row["step"] <= last)
    assert file.read_text() == "".join(rows[: last + 1])


def test_a_last_line_without_its_end_is_a_line(tmp_path):
    file = tmp_path / "log.jsonl"
    file.write_text('{"step": 1}')
    cut_last_lines(file, lambda row: True)
    assert file.read_text() == '{"step": 1}\n'
    file.write_text("")
    cut_last_lines(file, lambda row: True)
    assert file.read_text() == ""
