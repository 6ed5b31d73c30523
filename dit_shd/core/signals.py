"""Stopping in good order: a signal asks, the step is finished and saved, and all processes leave after the same."""

import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Ctrl-C, the end of a job, and what SLURM sends before it (--signal=USR1@90)."""
ECHO_SECONDS = 2.0
"""One Ctrl-C in a terminal reaches a process twice under a launcher, from the terminal and from the launcher."""


class Stopped(Exception):
    """A run has been stopped by a signal, and saved: what to tell the user, and the exit code 128 + signal."""

    def __init__(self, number: int, words: str):
        super().__init__(words)
        self.code = 128 + number


class StopRequest:
    """Whether somebody has asked to stop.

    stop = StopRequest()
    with stop.listening():
        while not stop.agreed(): ...  # one step
    """

    def __init__(self) -> None:
        self.signal = 0
        """What asked this process; 0 for nothing."""
        self.due = False
        """All processes have agreed to stop."""
        self._asked_at = 0.0

    def request(self, number: int = signal.SIGTERM) -> None:
        """Stop after this step."""
        if not self.signal:
            self.signal, self._asked_at = int(number), time.monotonic()

    def agreed(self) -> bool:
        """Whether any process has been asked: the same answer in all, at the cost of gathering one number."""
        import torch
        from accelerate import PartialState
        from accelerate.utils import gather

        found, state = self.signal, PartialState()
        if state.num_processes > 1:
            found = int(gather(torch.tensor([found], device=state.device)).max())  # type: ignore[union-attr]
        if found:
            self.request(found)
        self.due = bool(found)
        return self.due

    @contextmanager
    def listening(self) -> Generator["StopRequest"]:
        """Take the signals, and give them back at the end. A second Ctrl-C is a KeyboardInterrupt at once."""
        before = {number: signal.signal(number, self._handle_signal) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.request(number)
            again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            if int(os.environ.get("RANK", "0")) == 0:  # not print: it may be printing that was interrupted
                os.write(2, f"\n{signal.Signals(number).name}: finishing this step, then saving{again}\n".encode())
        elif number == signal.SIGINT and time.monotonic() - self._asked_at > ECHO_SECONDS:
            raise KeyboardInterrupt


def importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: it may take an exception for its own, and C++ may end the process for one."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            return True
        frame = frame.f_back
    return False


def leave(number: int) -> None:
    """End the process for a signal, without unwinding what was going on: as little is left behind as by a kill."""
    with suppress(Exception):  # it may be printing that was interrupted
        sys.stdout.flush()
    if int(os.environ.get("RANK", "0")) == 0:
        os.write(2, b"\ninterrupted\n")
    os._exit(128 + number)


@contextmanager
def interruptible() -> Generator[None]:
    """Ctrl-C is a KeyboardInterrupt in the block; in an import it ends the process, with code 130 and a line."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        if importing(frame):
            leave(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # somebody has other wishes
        yield
        return
    with handling(signal.SIGINT, interrupt):
        yield


@contextmanager
def terminable() -> Generator[None]:
    """SIGTERM ends the block as Ctrl-C does, by an exception, so that locks are released and a line is said."""

    def end(number: int, frame: FrameType | None) -> None:
        if importing(frame):
            leave(number)
        raise Stopped(number, "ended by SIGTERM; the same command goes on from what is saved")

    with handling(signal.SIGTERM, end):
        yield


@contextmanager
def handling(number: int, handler: Callable[[int, FrameType | None], None]) -> Generator[None]:
    """A signal handler for a while; none where this is not the main thread."""
    try:
        before = signal.signal(number, handler)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(number, before)
