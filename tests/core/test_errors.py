"""Phrases of errors: one line, and never an empty one."""

from pathlib import Path

import pytest

from dit_shd.core.errors import UserError, describe, error_line, shortened
from dit_shd.core.files import cannot_be_written
from dit_shd.data.broken_images import broken_error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(), "OSError"),
        (ValueError(" two\n\nlines "), "two lines"),
        (UserError("x" * 500), "x" * 160),
    ],
)
def test_an_error_is_a_line_of_limited_length_and_never_an_empty_one(error, line):
    assert error_line(error) == line
    assert f"a broken file ({line})" in str(broken_error("x.png", error))


def test_a_failed_write_says_something_of_an_error_without_words():
    assert "x.npz: cannot be written: ValueError; " in str(cannot_be_written(Path("x.npz"), ValueError()))


def test_long_values_are_shown_by_their_beginning():
    assert describe("x" * 57) == f"'{'x' * 57}' (str)"
    assert describe("x" * 58) == f"'{'x' * 56}... (str)" and shortened("x" * 60) == f"{'x' * 57}..."
