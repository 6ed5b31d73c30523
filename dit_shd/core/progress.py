"""Bars of long work: at once in a terminal or a notebook, every ten seconds in a log, which short work leaves alone."""

import sys
from typing import TYPE_CHECKING, Any

from dit_shd.core.launcher import is_first_process

if TYPE_CHECKING:
    from tqdm import tqdm

LOG_SECONDS = 10
"""Between two lines of a log, and before the first."""


def progress_bar(total: int, unit: str, desc: str, delay: float = 0) -> "tqdm[Any]":
    """A bar on standard error; of several processes the first one shows it.

    Args:
        total: The number of steps.
        unit: What one is.
        desc: Text before the bar.
        delay: Seconds before it is shown; one that waits leaves nothing behind in a terminal.
    """
    from tqdm.auto import tqdm

    terminal = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(
        total=total,
        unit=unit,
        desc=desc,
        mininterval=0.1 if terminal else LOG_SECONDS,
        delay=delay if terminal else LOG_SECONDS,
        leave=not delay,
        disable=not is_first_process(),
    )
