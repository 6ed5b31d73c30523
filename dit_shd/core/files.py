"""Files that are whole or not there, and stay so when the power goes: write, fsync, rename, fsync of the folder."""

import errno
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from dit_shd.core.errors import UserError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP}
"""What file systems answer that cannot sync a folder by itself."""
REMEDY = "what is finished is kept, and the same command goes on from it"


def sync(path: Path) -> None:
    """Have a file's contents, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def write_text(file: Path, text: str, remedy: str = REMEDY) -> None:
    """Replace a file's text in one step.

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
    """Remove a folder in one step: a kill leaves it whole, or under a name that mend() removes."""
    part = folder.with_name(f".{folder.name}.part")
    os.replace(folder, part)
    shutil.rmtree(part)


def recover(folder: Path) -> None:
    """Undo what kills left half done in a folder that nobody else writes to: see atomic_folder and atomic_file."""
    for old in folder.glob(".*.old"):
        final = old.with_name(old.name[1 : -len(".old")])
        if not final.exists():
            os.replace(old, final)
    for leftover in [*folder.glob(".*.old"), *folder.glob(".*.part")]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


class atomic_folder:
    """A folder that appears whole under its name when the block ends without an error, and not otherwise.

    A kill between its two renames leaves the old folder under `.NAME.old`; the next one, or mend(), puts it back.

    Raises:
        UserError: it could not be written.
    """

    def __init__(self, final: Path):
        self.final, self.part = final, final.with_name(f".{final.name}.part")
        self.old = final.with_name(f".{final.name}.old")

    def __enter__(self) -> Path:
        try:
            if self.old.exists() and not self.final.exists():
                os.replace(self.old, self.final)
            for leftover in (self.part, self.old):
                shutil.rmtree(leftover, ignore_errors=True)
            self.part.mkdir(parents=True)
        except OSError as error:
            raise cannot_be_written(self.final, error) from error
        return self.part

    def __exit__(self, kind: Any, error: Any, _: Any) -> None:
        try:
            if error is None:
                self._appear()
                return
        except OSError as late:
            error = late
        shutil.rmtree(self.part, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise cannot_be_written(self.final, error) from error

    def _appear(self) -> None:
        for path in [*self.part.rglob("*"), self.part]:
            if path.is_file():
                path.chmod(0o666 & ~_umask())  # safetensors writes for the owner only
            sync(path)
        if self.final.exists():
            os.replace(self.final, self.old)
        os.replace(self.part, self.final)
        sync(self.final.parent)
        shutil.rmtree(self.old, ignore_errors=True)


class atomic_file:
    """A binary file that appears under its name, on disk, when the block ends without an error, and not otherwise.

    Args:
        remedy: what to say where it cannot be written.

    Raises:
        UserError: it could not be written.
    """

    def __init__(self, final: Path, remedy: str = REMEDY):
        self.final, self.part = final, final.with_name(f".{final.name}.{os.getpid()}.part")
        self.remedy = remedy

    def __enter__(self) -> IO[bytes]:
        try:
            self.file = open(self.part, "wb")
        except OSError as error:
            raise cannot_be_written(self.final, error, self.remedy) from error
        return self.file

    def __exit__(self, kind: Any, error: Any, _: Any) -> None:
        try:
            if error is None:
                self.file.flush()
                os.fsync(self.file.fileno())
                self.file.close()
                os.replace(self.part, self.final)
                sync(self.final.parent)
                return
        except OSError as late:
            error = late
        self._forget()
        if isinstance(error, OSError):
            raise cannot_be_written(self.final, error, self.remedy) from error

    def _forget(self) -> None:
        for leave in (self.file.close, self.part.unlink):
            with suppress(OSError):  # what was buffered cannot be written either
                leave()


def cannot_be_written(final: Path, error: Exception, remedy: str = REMEDY) -> UserError:
    """The line for a failed write: OSError, or what safetensors makes of one."""
    told = re.search(r"os error (\d+)", str(error))
    number = error.errno if isinstance(error, OSError) else int(told[1]) if told else 0
    words = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())[:150]
    reason = "the disk is full" if number in FULL else words
    return UserError(f"{final}: cannot be written: {reason}; {remedy}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
