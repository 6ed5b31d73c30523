"""Captions in columns of tables and in JSON."""

import json
from collections.abc import Collection, Sequence
from typing import Any

from dit_shd.core.errors import UserError, error_line

NAMES = ("text", "caption", "captions", "prompt", "txt")
"""Usual names of columns, and of keys in IMAGE.json."""


def of_cells(cells: Sequence[Any]) -> list[str | None]:
    """Captions in cells of a table: a text, or the first of a list of texts; empty ones are none."""
    return [next(iter(_texts(cell)), None) for cell in cells]


def _texts(cell: Any) -> list[str]:  # noqa: ANN401
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


def of_json(data: bytes, column: str | None, where: str) -> str | None:
    """The caption in the content of IMAGE.json: of an object with the given key, or one of the usual ones, or a text.

    Raises:
        UserError: It is no JSON.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"images: {where}: wanted a caption in JSON, found {error_line(error, 80)}") from error
    if isinstance(content, dict) or column is not None:
        content = content if isinstance(content, dict) else {}
        cells = [content.get(key) for key in (NAMES if column is None else (column,))]
        return next((caption for caption in of_cells(cells) if caption), None)
    return of_cells([content])[0]
