"""What a launcher says of this process and of those beside it, by environment variables. Imports nothing heavy."""

import os

from dit_shd.core.errors import UserError


def is_first_process() -> bool:
    """Whether this process prints, by RANK; it does where there is no launcher."""
    return os.environ.get("RANK", "0") == "0"


def process_count() -> int:
    """The number of processes that the launcher started, by WORLD_SIZE; 1 where there is no launcher.

    Raises:
        UserError: WORLD_SIZE is no number.
    """
    started = os.environ.get("WORLD_SIZE", "1")
    if not started.isdecimal():
        raise UserError(
            f"WORLD_SIZE: wanted the number of a launcher's processes, found '{started}'; start by torchrun or "
            "accelerate launch, or unset it"
        )
    return int(started)
