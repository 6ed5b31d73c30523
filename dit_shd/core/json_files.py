"""JSON files that may be missing, damaged, or somebody else's."""

import json
from pathlib import Path
from typing import Any


def read_object(file: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is none: no such file, not readable, or something else in it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
