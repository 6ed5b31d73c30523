"""Graceful stops: at a signal, all processes finish the same step, save it and end."""

import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType

from dit_shd.core.launcher import is_first_process
from dit_shd.core.streams import discard

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
"""The end of a job, what SLURM sends before it (--signal=USR1@90), and the end of the terminal or the connection."""
SIGNALS = (signal.SIGINT, *ENDING)
"""Ctrl-C, too."""
HANGUP = getattr(signal, "SIGHUP", None)
ECHO_SECONDS = 2.0
"""Under a launcher one Ctrl-C reaches a process twice, from the terminal and from the launcher, within this time."""


class Stopped(BaseException):
    """A run was stopped by a signal, and saved: the message for the user, and the exit code 128 + signal.

    Like KeyboardInterrupt it is no Exception: it may come while a library reads a file or builds a model, and what
    fails there in ways of its own is an error of the file or the model.
    """

    def __init__(self, number: int, words: str):
        super().__init__(words)
        self.code = 128 + number


class StopRequest:
    """Whether a signal or a caller has requested to stop.

    stop = StopRequest()
    with stop.listening():
        while not stop.agreed(): ...  # one step
    """

    def __init__(self) -> None:
        self.signal = 0
        """The signal that this process received; 0 for none."""
        self.due = False
        """Whether all processes have agreed to stop."""
        self._requested_at = 0.0

    def request(self, number: int = signal.SIGTERM) -> None:
        """Request a stop after this step."""
        if not self.signal:
            self.signal, self._requested_at = int(number), time.monotonic()

    def agreed(self) -> bool:
        """Whether any process has a request: the same answer in all processes, which gathers one number."""
        import torch
        from accelerate import PartialState
        from accelerate.utils import gather

        number, state = self.signal, PartialState()
        if state.num_processes > 1:
            number = int(gather(torch.tensor([number], device=state.device)).max())  # type: ignore[union-attr]
        if number:
            self.request(number)
        self.due = bool(number)
        return self.due

    @contextmanager
    def listening(self) -> Generator["StopRequest"]:
        """Handle SIGNALS in the block, and restore their handlers. A second Ctrl-C is a KeyboardInterrupt at once."""
        before = {number: signal.signal(number, self._handle_signal) for number in SIGNALS if _is_heeded(number)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        _let_go_of_terminal(number)
        if not self.signal:
            self.request(number)
            again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            if is_first_process():  # not print: the signal may have interrupted a print
                with suppress(OSError):
                    os.write(2, f"\n{signal.Signals(number).name}: finishing this step, then saving{again}\n".encode())
        elif number == signal.SIGINT and time.monotonic() - self._requested_at > ECHO_SECONDS:
            raise KeyboardInterrupt


def _is_heeded(number: int) -> bool:
    """Whether a process is to end by a signal: not by the end of a terminal that it is to outlive (nohup)."""
    return number != HANGUP or signal.getsignal(number) is not signal.SIG_IGN


def _let_go_of_terminal(number: int) -> None:
    """Where the terminal has gone, print to nowhere: what is printed there would be an error."""
    if number != HANGUP:
        return
    for stream in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode):
                discard(stream)


def importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported, where an exception may be swallowed, or end the process in C++."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            return True
        frame = frame.f_back
    return False


def leave(number: int) -> None:
    """End the process for a signal at once, without unwinding the stack, as a kill does."""
    with suppress(Exception):  # the signal may have interrupted a print
        sys.stdout.flush()
    if is_first_process():
        with suppress(OSError):
            os.write(2, b"\ninterrupted\n")
    os._exit(128 + number)


@contextmanager
def interruptible() -> Generator[None]:
    """Make Ctrl-C a KeyboardInterrupt in the block; during an import it ends the process with code 130 and a line."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        if importing(frame):
            leave(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # another handler is installed
        yield
        return
    with handling(signal.SIGINT, interrupt):
        yield


@contextmanager
def terminable(words: str = "the same command goes on from what is saved") -> Generator[None]:
    """Make signals end the block by an exception, as Ctrl-C does, so that locks are released and a line is printed.

    These are SIGTERM, SIGUSR1, and SIGHUP but under nohup.

    Args:
        words: What becomes of the work, for that line.
    """

    def end(number: int, frame: FrameType | None) -> None:
        _let_go_of_terminal(number)
        if importing(frame):
            leave(number)
        raise Stopped(number, f"ended by {signal.Signals(number).name}; {words}")

    with ExitStack() as stack:
        for number in filter(_is_heeded, ENDING):
            stack.enter_context(handling(number, end))
        yield


@contextmanager
def handling(number: int, handler: Callable[[int, FrameType | None], None]) -> Generator[None]:
    """Install a signal handler for the block; does nothing outside of the main thread."""
    try:
        before = signal.signal(number, handler)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(number, before)
