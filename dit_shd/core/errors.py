"""The one exception a user can cause, whose message is a single clear line, and words that many such lines share."""

import difflib
from typing import Any


class UserError(ValueError):
    """Wrong input. Says what was wanted, what was found and what to do; commands print it and exit with 2."""


def unknown(where: str, key: str, known: Any) -> UserError:
    """The error for a key nobody knows, with the nearest known one."""
    near = difflib.get_close_matches(str(key), list(known), 1, cutoff=0.45)
    hint = f", did you mean '{near[0]}'?" if near else "."
    return UserError(f"{where}: unknown key '{key}'{hint} Known: {', '.join(sorted(known))}")


def describe(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) < 60 else text[:57] + '...'} ({type(value).__name__})"


def wrong(where: str, wanted: str, value: Any) -> UserError:
    return UserError(f"{where}: wanted {wanted}, found {describe(value)}")


def one_line(text: str, length: int = 60) -> str:
    """What a stranger called something, which may be anything, as a text for one line that can be written."""
    return " ".join(text.encode("utf-8", "replace").decode().split())[:length]
