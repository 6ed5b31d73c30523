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
