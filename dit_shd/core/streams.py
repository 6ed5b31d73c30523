"""Standard output and error where nobody reads them: closed from the start, or a pipe whose reader has ended."""

import os
import select
import sys


def discard(stream: int) -> None:
    """Print to nowhere what goes to standard output (1) or error (2)."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != stream:  # else the lowest free number was its own
        os.dup2(nowhere, stream)
        os.close(nowhere)


def open_missing() -> None:
    """Print to nowhere where a stream was closed before the process began, as by `2>&-` or a service."""
    for stream, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            discard(stream)
            setattr(sys, name, os.fdopen(stream, "w", encoding="utf-8", closefd=False))


def let_go() -> bool:
    """Print to nowhere from now on where the reader of a pipe, such as `head`, has ended; whether one has."""
    if not hasattr(select, "poll"):  # Windows
        return False
    waiting = select.poll()
    for stream in (1, 2):
        waiting.register(stream, 0)
    gone = [stream for stream, event in waiting.poll(0) if event & select.POLLERR]
    for stream in gone:
        discard(stream)
    return bool(gone)
