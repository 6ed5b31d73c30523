"""Bars in a log, which is no terminal."""

import pytest

from dit_shd.core import progress


@pytest.mark.parametrize(("seconds", "lines"), [(10, 0), (0, 3)])
def test_a_log_has_lines_of_long_work_and_none_of_short(capsys, monkeypatch, seconds, lines):
    """A job's log had said nothing for the whole evaluation: bars had been for terminals alone."""
    monkeypatch.setattr(progress, "LOG_SECONDS", seconds)
    with progress.progress_bar(3, "image", "features of x") as bar:
        for _ in range(3):
            bar.update()
    shown = capsys.readouterr().err.count("features of x")
    assert shown >= lines and bool(shown) == bool(lines)
    with progress.progress_bar(3, "image", "features of x") as bar:
        bar.update()
    assert bool(capsys.readouterr().err) == (lines > 0)


def test_of_several_processes_the_first_one_shows_its_bar(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0)
    for rank, shown in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        with progress.progress_bar(3, "image", "features of x") as bar:
            bar.update(3)
        assert ("features of x" in capsys.readouterr().err) == shown
