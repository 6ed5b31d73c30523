"""Every loss in one line, as text and as Markdown."""

from collections.abc import Sequence

from dit_shd.profiling.loss_table import LossEntry
from dit_shd.reports.tables import markdown, plain_table

HEADINGS = ("loss", "reads", "needs", "operations", "parameters", "paper")


def losses_text(entries: Sequence[LossEntry]) -> str:
    """A table of all losses, and what each is.

    Args:
        entries: One a loss.
    """
    table = plain_table([(heading, "") for heading in HEADINGS], [_cells(entry) for entry in entries])
    longest = max(len(entry.name) for entry in entries)
    return "\n".join([table, "", *(f"{entry.name:{longest}}  {entry.summary}" for entry in entries)])


def losses_markdown(entries: Sequence[LossEntry]) -> str:
    """A Markdown table of all losses.

    Args:
        entries: One a loss.
    """
    rows = [[f"`{entry.name}`", entry.summary, *_cells(entry)[1:]] for entry in entries]
    return markdown([(name, "") for name in (HEADINGS[0], "what it is", *HEADINGS[1:])], rows)


def _cells(entry: LossEntry) -> list[str]:
    if entry.share is None or entry.parameters is None:
        return [entry.name, entry.reads, entry.needs or "-", entry.note, "-", entry.paper]
    share = f"{100 * entry.share:.2f} %" + (f" ({entry.note})" if entry.note else "")
    learned = f"{entry.parameters / 1e6:.2f} M" if entry.parameters else "0"
    return [entry.name, entry.reads, entry.needs or "-", share, learned, entry.paper]
