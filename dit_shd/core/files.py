"""Files that appear complete or not at all, also at a power cut: write, fsync, rename, fsync of the folder."""

import errno
import logging
import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from dit_shd.core.errors import UserError, error_line

FULL = {errno.ENOSPC, errno.EDQUOT}
NO_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP}
"""Errors of file systems that cannot sync a folder."""
MANY = 256
"""Files of a folder beyond which the system writes all that it has to disk, as one after the other takes minutes."""
PART, OLD = ".dit_shd.part", ".dit_shd.old"
"""Ends of hidden names of what is being written, and of what it replaces: a kill leaves them, and nobody else's."""
_log = logging.getLogger("dit_shd")
REMEDY = "what is finished is kept, and the same command goes on from it"


def sync(path: Path) -> None:
    """Flush a file's contents, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def refuse_input(out: Path, used: str | Path) -> None:
    """Refuse to write what is read.

    Args:
        out: The file to be written.
        used: A file that is read; a folder, or the name of data, is none.

    Raises:
        UserError: They are one file.
    """
    place = Path(used).expanduser()
    if out.is_file() and place.is_file() and out.samefile(place):
        raise UserError(f"out={out}: is what is read here, and would be lost; choose another out=FILE")


def write_text(file: Path, text: str, remedy: str = REMEDY) -> None:
    """Replace a file's text atomically.

    Args:
        file: The file.
        text: Its new text.
        remedy: What the error advises.

    Raises:
        UserError: It could not be written.
    """
    with atomic_file(file, remedy) as stream:
        stream.write(text.encode(errors="backslashreplace"))  # names of files need not be UTF-8


def remove(folder: Path) -> None:
    """Remove a folder atomically: after a kill it is complete, or has a name that recover() removes.

    What cannot be removed, since it is open elsewhere on a network disk, say, stays, with a warning.
    """
    part = folder.with_name(f".{folder.name}{PART}")
    with _needless(folder):
        os.replace(folder, part)
        drop(part)


def recover(folder: Path) -> None:
    """Complete or undo what a killed atomic_folder or atomic_file left in a folder that no other process writes to."""
    for old in folder.glob(f".*{OLD}"):
        final = old.with_name(old.name[1 : -len(OLD)])
        if not final.exists():
            os.replace(old, final)
    for leftover in [*folder.glob(f".*{OLD}"), *folder.glob(f".*{PART}")]:
        with _needless(leftover):
            drop(leftover)


def drop(path: Path) -> None:
    """Remove a folder, a file or a link."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _followed(path: Path) -> Path:
    """Where a path leads: of a link, as of a student's folder on a larger disk, the place that it names.

    Raises:
        UserError: A link into a folder that is not there, as of a disk that is not mounted; or a device.
    """
    place = path.resolve() if path.is_symlink() else path.absolute()  # of `.` the name
    if path.is_symlink() and not place.parent.is_dir():
        raise UserError(f"{path}: is a link to {place}, whose folder is not there; {REMEDY}")
    if place.exists() and not place.is_file() and not place.is_dir():
        raise UserError(f"{path}: wanted a place for a file or folder, found a device, which would be replaced")
    return place


@contextmanager
def _needless(path: Path) -> Generator[None]:
    """What is not needed any more may stay where it cannot be removed."""
    try:
        yield
    except OSError as error:
        _log.warning("%s: cannot be removed (%s); it stays, and is not needed", path, error.strerror or error)


@contextmanager
def atomic_folder(final: Path) -> Generator[Path]:
    """A folder that appears complete under its name when the block ends without an error, and not otherwise.

    A kill between the two renames leaves the old folder as `.NAME` + OLD; recover() or the next atomic_folder restores
    it.

    Args:
        final: Its path; the block writes into the folder that it is given.

    Raises:
        UserError: It could not be written.
    """
    final = _followed(final)
    part, old = (final.with_name(f".{final.name}{end}") for end in (PART, OLD))
    try:
        if old.exists() and not final.exists():
            os.replace(old, final)
        for leftover in (part, old):
            shutil.rmtree(leftover, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        _publish(part, final, old)
    except (OSError, SafetensorError) as error:
        raise cannot_be_written(final, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _publish(part: Path, final: Path, old: Path) -> None:
    paths = [*part.rglob("*"), part]
    at_once = len(paths) > MANY and hasattr(os, "sync")
    for path in paths:
        if path.is_file():
            _own_permissions(path)
        if not at_once:
            sync(path)
    if at_once:
        os.sync()
    if final.exists():
        os.replace(final, old)
    os.replace(part, final)
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def move(part: Path, final: Path) -> None:
    """Move a file or a folder to a place, which may be a link or on another disk.

    A folder goes into a link's, or onto a disk that is mounted there, file by file; after a kill the same call goes on.

    Args:
        part: What is moved.
        final: The place; a folder that is there is empty, or has some of the files.

    Raises:
        OSError: It could not be moved.
        UserError: It could not be written.
    """
    place = _followed(final)
    if part.is_dir() and (final.is_symlink() or os.path.ismount(final)):
        place.mkdir(exist_ok=True)
        for file in sorted(part.iterdir()):
            move(file, place / file.name)
        part.rmdir()
        return
    try:
        os.replace(part, place)
    except OSError as error:
        if error.errno != errno.EXDEV or part.is_dir():
            raise
        with atomic_file(place) as stream, open(part, "rb") as source:
            shutil.copyfileobj(source, stream)
        part.unlink()


@contextmanager
def atomic_file(final: Path, remedy: str = REMEDY) -> Generator[IO[bytes]]:
    """A binary file that appears under its name, on disk, when the block ends without an error, and not otherwise.

    Args:
        final: Its path.
        remedy: Last part of the error where it cannot be written.

    Raises:
        UserError: It could not be written.
    """
    with _publishing(final, remedy) as part, open(part, "wb") as stream:
        yield stream


@contextmanager
def atomic_path(final: Path) -> Generator[Path]:
    """As atomic_file, for writers that take a path: the one to be written in the block.

    Raises:
        UserError: It could not be written.
    """
    with _publishing(final, REMEDY) as part:
        yield part
        _own_permissions(part)


@contextmanager
def _publishing(final: Path, remedy: str) -> Generator[Path]:
    final = _followed(final)
    part = final.with_name(f".{final.name}.{os.getpid()}{PART}")
    try:
        yield part
        sync(part)
        os.replace(part, final)
        sync(final.parent)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, (OSError, SafetensorError)):
            raise cannot_be_written(final, error, remedy) from error
        raise


def _own_permissions(file: Path) -> None:
    """Those of any new file: safetensors writes for the owner only."""
    file.chmod(0o666 & ~_umask())


def cannot_be_written(final: Path, error: Exception, remedy: str = REMEDY) -> UserError:
    """The line for a failed write: OSError, or what safetensors makes of one."""
    match = re.search(r"(?:os error|code:) (\d+)", str(error))
    number = error.errno if isinstance(error, OSError) else int(match[1]) if match else 0
    words = os.strerror(number) if number else error_line(error)
    reason = "the disk is full" if number in FULL else words
    return UserError(f"{final}: cannot be written: {reason}; {remedy}")


def make_folder_of(out: Path) -> None:
    """Make the folder of a file that is to be written.

    Raises:
        UserError: It cannot be made, or nothing can be written in it.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out}: wanted a path in a folder, found {error.strerror}") from error
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"out={out}: this folder cannot be written to; choose another out=FILE")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
