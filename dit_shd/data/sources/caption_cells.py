"""Captions in columns of tables and in JSON."""

import json
from collections.abc import Collection, Sequence
from typing import Any

from dit_shd.core.errors import UserError, error_line

NAMES = ("text", "caption", "captions", "prompt", "txt")
"""Usual names of columns, and of keys in IMAGE.json."""
UNREAD = "captions cannot be read"
"""What a note says of files whose images have no caption for it."""


def of_cells(cells: Sequence[Any]) -> tuple[list[str | None], list[str]]:
    """Captions in cells of a table: a text, or the first of a list of texts; and a note on lists of several."""
    texts = [texts_of(cell) for cell in cells]
    several = sum(len(listed) > 1 for listed in texts)
    notes = [f"{several} images have lists of several captions; the first of each is taken"] if several else []
    return [next(iter(listed), None) for listed in texts], notes


def texts_of(cell: Any) -> list[str]:  # noqa: ANN401
    """The texts of a cell that are not empty."""
    items = cell if isinstance(cell, (list, tuple)) else (cell,)
    return [item for item in items if isinstance(item, str) and item.strip()]


def column_of(names: Collection[str], given: str | None, where: str) -> str:
    """The column of captions in a table.

    Raises:
        UserError: There is none.
    """
    column = next((name for name in (NAMES if given is None else (given,)) if name in names), None)
    if column is None:
        wanted, known = given or " or ".join(NAMES), ", ".join(names)[:200]
        raise UserError(f"caption_column: '{where}' has no column {wanted}, it has {known}; say caption_column=NAME")
    return column


class BrokenCaption(ValueError):
    """One caption that cannot be read; the message is the reason, the same at every run."""


def unread(files: Sequence[str]) -> list[str]:
    """A note on files of captions that cannot be read, each given with its reason, of which the first is shown."""
    more = ", ..." if len(files) > 1 else ""
    return [f"{len(files)} {UNREAD} ({files[0]}{more})"] if files else []


def of_json(data: bytes, column: str | None) -> list[str]:
    """The captions in the content of IMAGE.json: of an object's given key, or of the first usual one that has any.

    Raises:
        BrokenCaption: It is no JSON.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BrokenCaption(f"wanted JSON, {error_line(error, 80)}") from error
    if isinstance(content, dict) or column is not None:
        content = content if isinstance(content, dict) else {}
        keyed = (texts_of(content.get(key)) for key in (NAMES if column is None else (column,)))
        return next((texts for texts in keyed if texts), [])
    return texts_of(content)
