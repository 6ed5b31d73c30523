"""Files and folders that appear whole."""

from pathlib import Path

from dit_shd.core.files import atomic_folder


def test_a_folder_to_write_may_be_the_one_that_one_is_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with atomic_folder(Path()) as part:
        (part / "file").write_text("whole")
    assert (tmp_path / "file").read_text() == "whole"
