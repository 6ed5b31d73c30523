"""Names of files in messages: on one line each, a few of many."""

NAMED = 3
"""Number of names shown behind a count."""


def counted(paths: list[str]) -> str:
    """The number of paths, and the first of them."""
    names = ", ".join(printable(path) for path in paths[:NAMED])
    return f"{len(paths)} ({names}{', ...' if len(paths) > NAMED else ''})"


def printable(name: str) -> str:
    """A name on one line; invalid UTF-8 and invisible characters are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
