"""JSON files that may be missing, damaged, or somebody else's."""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any


def read_object(file: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is none: no such file, not readable, or something else in it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects in a log of JSON lines, but for those that a kill left half written; none where there is no file."""
    rows = list[Any]()
    for line in file.read_bytes().splitlines() if file.exists() else ():
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
