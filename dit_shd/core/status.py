"""A line for a person who waits at a terminal, gone when the wait is over; logs and pipes do not get it."""

import sys
from collections.abc import Generator
from contextlib import contextmanager

from dit_shd.core.launcher import is_first_process


@contextmanager
def shown(text: str) -> Generator[None]:
    """Show a line on the terminal while the block runs, in the first process of several.

    Args:
        text: The text of the line.
    """
    visible = sys.stderr.isatty() and is_first_process()
    if visible:
        sys.stderr.write(text)
        sys.stderr.flush()
    try:
        yield
    finally:
        if visible:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
