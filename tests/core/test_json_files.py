import json

import pytest

from dit_shd.core.json_files import read_object


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
