"""Several processes: what the main one does for all, and how they end."""

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from dit_shd.core.errors import UserError

if TYPE_CHECKING:
    from accelerate import PartialState


def leave_group() -> None:
    """End the process group of a launcher; gloo's threads, left to the interpreter's exit, abort it now and then."""
    torch: Any = sys.modules.get("torch")
    group = None if torch is None or not torch.distributed.is_available() else torch.distributed
    if group is not None and group.is_initialized() and group.get_backend() == "gloo":
        group.destroy_process_group()


def is_first_process() -> bool:
    """Whether this is the one that speaks, by what a launcher said."""
    return os.environ.get("RANK", "0") == "0"


T = TypeVar("T")
TOLD = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher tells its processes by the environment."""


@contextmanager
def joining() -> Generator[None]:
    """Where accelerate first looks for other processes. A single one may be told less than several need to be.

    Raises:
        UserError: what the environment tells is not enough to find the others.
    """
    told = {name: os.environ[name] for name in TOLD if name in os.environ}
    if told and told.get("WORLD_SIZE", "1") == "1" and not told.get("MASTER_ADDR"):  # a shell or scheduler left some
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if not told or isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the environment is a launcher's ({', '.join(f'{k}={v}' for k, v in told.items())}), but no group of "
            f"processes comes of it ({reason}); start by torchrun or accelerate launch, or unset these variables"
        ) from error


def joined() -> "PartialState":
    """Who the processes are that do this together; one, where no launcher says otherwise."""
    import torch
    from accelerate import PartialState

    with joining():
        return PartialState(cpu=not torch.accelerator.is_available())


def run_on_main(act: Callable[[], T]) -> T:
    """Call `act` in the main process alone; what it returns (plain data) is returned in every process.

    Raises:
        UserError: `act` did, or its disk failed: in every process, so that none waits for one that is gone.
    """
    from accelerate.utils import broadcast_object_list

    told: list[Any] = [None, None]
    if joined().is_main_process:
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
