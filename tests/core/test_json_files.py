import json

import pytest

from dit_shd.core.json_files import read_lines, read_object


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
