"""UserError, whose message is one clear line, and phrases that many of these lines share."""

import difflib
from collections.abc import Collection


class UserError(ValueError):
    """Wrong input: what was wanted, what was found and what to do; commands print it and exit with 2."""


def unknown(where: str, key: str, known: Collection[str]) -> UserError:
    """The error for an unknown key, with the nearest known one."""
    near = difflib.get_close_matches(str(key), list(known), 1, cutoff=0.45)
    hint = f", did you mean '{near[0]}'?" if near else "."
    return UserError(f"{where}: unknown key '{key}'{hint} Known: {', '.join(sorted(known))}")


def describe(value: object) -> str:
    """A value and its type, for an error; the type alone of what takes several lines, such as a model."""
    text, kind = repr(value), type(value).__name__
    return kind if "\n" in text else f"{shortened(text)} ({kind})"


def shortened(text: str) -> str:
    """A text, or its beginning."""
    return text if len(text) < 60 else f"{text[:57]}..."


def wrong(where: str, wanted: str, value: object) -> UserError:
    """The error for a value of another type or form."""
    return UserError(f"{where}: wanted {wanted}, found {describe(value)}")


def error_line(error: BaseException, length: int = 160) -> str:
    """The message of an error as one line of limited length; its type where it has none."""
    return " ".join(str(error).split())[:length] or type(error).__name__


def one_line(text: str, length: int = 60) -> str:
    """A foreign name, which may hold any character, as UTF-8 text for one line."""
    return " ".join(text.encode("utf-8", "replace").decode().split())[:length]
