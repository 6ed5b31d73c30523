"""Several processes: what the main one does for all, and how they end."""

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from dit_shd.core.errors import UserError


def leave_group() -> None:
    """End the process group of a launcher; gloo's threads, left to the interpreter's exit, abort it now and then."""
    torch: Any = sys.modules.get("torch")
    group = None if torch is None or not torch.distributed.is_available() else torch.distributed
    if group is not None and group.is_initialized() and group.get_backend() == "gloo":
        group.destroy_process_group()


T = TypeVar("T")


def on_main(act: Callable[[], T]) -> T:
    """Call `act` in the main process alone; what it returns (plain data) is returned in every process.

    Raises:
        UserError: `act` did, or its disk failed: in every process, so that none waits for one that is gone.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    told: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            told[0] = act()
        except (UserError, OSError) as error:
            told[1] = str(error)
    broadcast_object_list(told)
    if told[1] is not None:
        raise UserError(told[1])
    return told[0]


def launched(processes: int) -> None:
    """accelerate must work with as many processes as the launcher started, or each would do all the work."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != processes:
        raise UserError(
            f"the launcher started {started} processes, but accelerate works with {processes}; see accelerate config"
        )
