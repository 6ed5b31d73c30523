"""One command at a time in a folder.

    with Lock(folder / LOCK, "dit-shd train"):
        ...

The lock is the kernel's (flock) on a small file, so it ends with its process however that dies, kill -9 included. The
file records the holder's pid, host and start time; release removes it, and the file of a killed holder is taken over.

Network file systems: Linux's NFS, CephFS, GPFS and recent Lustre carry flock between hosts. Some mounts keep it to one
host (NFS with local_lock, BeeGFS by default) or have none, so a lock file of another host counts as held as long as its
holder touches it, every HEARTBEAT_SECONDS.
"""

import atexit
import errno
import json
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary, ref

from dit_shd.core.distributed import run_on_main
from dit_shd.core.errors import UserError
from dit_shd.core.files import atomic_folder

LOCK = ".lock"
"""The file of the lock of a folder that is one command's: a run, a demo."""
HEARTBEAT_SECONDS = 20
TIMEOUT_SECONDS = 120
"""A holder on another host whose last heartbeat is older is dead."""

_NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_log = logging.getLogger("dit_shd")


@contextmanager
def alone_in(folder: Path) -> Generator[None]:
    """A block that processes of one host run in turn, for a folder; where none can be locked, at once.

    For what is done in a moment: others wait for it, where a Lock refuses them.
    """
    import fcntl

    with ExitStack() as stack:
        with suppress(OSError):
            fd = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield


class Lock:
    """A lock that is held from its construction until release(), the end of the block, or the end of the process.

    A process may hold it more than once (a notebook cell that is run again). Only the main process of a launch takes
    it.

    Args:
        file: The lock file; its folder is made if need be.
        what: The command that holds it, for the error of the next one.

    Raises:
        UserError: Another process holds it: which one, and what to do.
    """

    def __init__(self, file: Path, what: str):
        path = file.parent.resolve() / file.name  # one lock, by whichever link a folder is named
        held = _mine.get(path)
        still = held is not None and held.pid == os.getpid() and _is_at(held.fd, path)
        self._held = held if held is not None and still else _Held(path, what)
        _mine[path] = self._held
        self._held.holders += 1
        self._held.taken += 1
        self._turn = self._held.taken

    @property
    def is_latest(self) -> bool:
        """Whether nobody in this process has taken it again while it was held."""
        return self._held is None or self._held.taken == self._turn

    @property
    def is_in_place(self) -> bool:
        """Whether the file is still where it was locked; its folder may have been moved, and another be there."""
        return self._held is None or _is_at(self._held.fd, self._held.path)

    def release(self) -> None:
        """Release the lock; calling it again does nothing."""
        held, self._held = self._held, None
        if held is not None:
            held.holders -= 1
            if not held.holders:
                held.release()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class _Held:
    """The open lock file of this process."""

    def __init__(self, path: Path, what: str):
        self.path, self.pid, self.holders, self.taken = path, os.getpid(), 0, 0
        self.fd = _opened(path)
        try:
            _take(self.fd, path)
            os.ftruncate(self.fd, 0)
            myself = {"pid": self.pid, "host": socket.gethostname(), "start": _start_ticks(self.pid)}
            os.pwrite(self.fd, json.dumps({"what": what, **myself, "since": time.time()}).encode(), 0)
        except OSError as error:
            os.close(self.fd)
            raise UserError(f"{path}: cannot be written ({error.strerror})") from error
        except BaseException:
            os.close(self.fd)
            raise
        self.over = threading.Event()
        self.ended = partial(_release, ref(self))  # __del__ at the end of the interpreter is too late
        atexit.register(self.ended)
        threading.Thread(target=_heartbeat, args=(path, self.over), daemon=True).start()

    def release(self) -> None:
        if self.over.is_set() or os.getpid() != self.pid:
            return
        self.over.set()
        atexit.unregister(self.ended)
        if _mine.get(self.path) is self:
            del _mine[self.path]
        if _is_at(self.fd, self.path):
            self.path.unlink()  # while it is still held: _take checks that the inode it locked is still at the path
        os.close(self.fd)

    def __del__(self) -> None:
        if hasattr(self, "over") and not self.over.is_set():
            self.release()


def _release(held: "ref[_Held]") -> None:
    alive = held()
    if alive is not None:
        alive.release()


_mine: "WeakValueDictionary[Path, _Held]" = WeakValueDictionary()


@contextmanager
def locked(file: Path, what: str) -> Generator[None]:
    """A block that one launch at a time may run: every process enters it, the main one holds the lock.

    Raises:
        UserError: Another launch holds the lock; in every process.
    """
    locks: list[Lock] = []
    run_on_main(lambda: locks.append(Lock(file, what)))
    try:
        yield
    finally:
        for lock in locks:
            lock.release()


@contextmanager
def new_folder(final: Path, what: str) -> Generator[Path]:
    """A folder that one command at a time writes, and that appears complete when the block ends; see atomic_folder.

    Args:
        final: Its path; the block writes into the folder that it is given.
        what: The command, for the error of another one.

    Raises:
        UserError: Another process writes it, or it could not be written.
    """
    final = final.resolve()
    with locked(final.with_name(f".{final.name}.lock"), what), atomic_folder(final) as part:
        yield part


def is_held(path: Path) -> bool:
    """Whether a lock file's holder is alive, by what the file says of it; nothing is locked."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        holder = _read(fd)
        if not holder:
            return False
        if holder["host"] == socket.gethostname():
            return _is_alive(holder)
        return time.time() - path.stat().st_mtime < TIMEOUT_SECONDS
    except OSError:  # released in between
        return False
    finally:
        os.close(fd)


def _opened(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def _take(fd: int, path: Path) -> None:
    """Lock the file.

    Raises:
        UserError: Another process holds it.
    """
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = True
    except BlockingIOError as error:
        raise _refusal(path, _read(fd)) from error
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        locked = False
    if not _is_at(fd, path):  # released between opening and locking
        raise _refusal(path, {})
    holder = _read(fd)
    if not holder:
        return
    same_host = holder.get("host") == socket.gethostname()
    if _is_alive(holder) and not locked if same_host else _seconds_since_heartbeat(path) < TIMEOUT_SECONDS:
        raise _refusal(path, holder)
    _log.info("%s: taken over from pid %s on %s, which is gone", path.parent, holder.get("pid"), holder.get("host"))


def _refusal(path: Path, holder: dict[str, Any]) -> UserError:
    if not holder:
        return UserError(f"{path.parent}: in use by another process (see {path.name}); wait for it to end")
    try:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(holder["since"]))
    except (OverflowError, ValueError, OSError):
        since = "an unknown time"
    words = f"in use by {holder['what']}, pid {holder['pid']} on {holder['host']}, since {since}"
    if holder["host"] == socket.gethostname():
        return UserError(f"{path.parent}: {words}; wait for it, or end it by: kill {holder['pid']}")
    return UserError(
        f"{path.parent}: {words}; wait for it, or end it there. If it is gone, try again in {TIMEOUT_SECONDS} "
        f"seconds, or remove {path}"
    )


def _read(fd: int) -> dict[str, Any]:
    """The holder that the file records; {} if it is empty or half written."""
    try:
        holder = json.loads(os.pread(fd, 4096, 0))
        types = {"what": str, "pid": int, "host": str, "start": int, "since": float}
        return holder if all(isinstance(holder[key], cls) for key, cls in types.items()) else {}
    except (ValueError, KeyError, TypeError):
        return {}


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except OSError:
        return False


def _start_ticks(pid: int) -> int:
    """When a process began, in clock ticks since the boot, which tells a reused pid apart; 0: not known."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _is_alive(holder: dict[str, Any]) -> bool:
    """Whether a holder on this host still runs."""
    try:
        os.kill(holder["pid"], 0)
    except PermissionError:
        pass
    except (OSError, OverflowError):
        return False
    return holder["start"] == _start_ticks(holder["pid"])


def _seconds_since_heartbeat(path: Path) -> float:
    """Seconds since the last heartbeat, by the file system's own clock."""
    with tempfile.TemporaryFile(dir=path.parent) as now:
        return os.fstat(now.fileno()).st_mtime - path.stat().st_mtime


def _heartbeat(path: Path, over: threading.Event) -> None:
    while not over.wait(HEARTBEAT_SECONDS):
        try:
            os.utime(path)
        except OSError:
            return
