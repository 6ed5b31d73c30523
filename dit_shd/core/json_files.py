"""JSON files that may be missing, damaged, or somebody else's."""

import json
import math
import mmap
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

BLOCK = 1 << 16
"""Bytes of the end of a log that are read at first."""


def read_object(file: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is none: no such file, not readable, or something else in it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects in a log of JSON lines, but for those that a kill left half written; none where there is no file."""
    return _objects(file.read_bytes().splitlines() if file.exists() else ())


def read_last_lines(file: Path, count: int) -> list[dict[str, Any]]:
    """The last of them; of a long log its end alone is read."""
    if not file.exists():
        return []
    with open(file, "rb") as stream:
        size, part = stream.seek(0, os.SEEK_END), BLOCK
        while True:
            start = stream.seek(max(0, size - part))
            lines = stream.read().splitlines()
            rows = _objects(lines[1:] if start else lines)
            if len(rows) >= count or not start:
                return rows[-count:]
            part *= 4


def cut_last_lines(file: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Cut off the end of a log: lines that are broken and objects that are not to be kept, up to one that is.

    Args:
        file: The log.
        keep: Whether an object is to be kept.
    """
    with open(file, "r+b") as stream:
        end = size = stream.seek(0, os.SEEK_END)
        if not size:
            return
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            while end:
                start = content.rfind(b"\n", 0, end - 1) + 1
                if any(keep(row) for row in _objects([content[start:end]])):
                    break
                end = start
            is_line = not end or content[end - 1 : end] == b"\n"
        stream.truncate(end)
        if not is_line:
            stream.seek(end)
            stream.write(b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _objects(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    rows = list[Any]()
    for line in lines:
        with suppress(ValueError, RecursionError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def finite(value: object) -> object:
    """What Python read of somebody's JSON, as JSON has it: NaN and infinities, which it does not know, as texts."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
