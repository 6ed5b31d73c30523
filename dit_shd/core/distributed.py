"""Several processes: joining their group, work of the main process for all, and leaving the group."""

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from dit_shd.core.devices import accelerator
from dit_shd.core.errors import UserError, error_line
from dit_shd.core.launcher import process_count
from dit_shd.core.meeting import PATIENCE, met

if TYPE_CHECKING:
    from accelerate import PartialState


def leave_group(ended: bool = False) -> None:
    """Destroy the process group before the interpreter exits: threads of gloo would abort the exit now and then.

    Args:
        ended: Whether this process has done its work. Leaving a group of NCCL, which warns where it is not left, may
            wait for the others, and one that has failed must not.
    """
    torch: Any = sys.modules.get("torch")
    group = None if torch is None or not torch.distributed.is_available() else torch.distributed
    if group is not None and group.is_initialized() and (ended or group.get_backend() == "gloo"):
        group.destroy_process_group()


T = TypeVar("T")
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that a launcher sets for its processes."""


@contextmanager
def joining() -> Generator[None]:
    """The block in which accelerate joins the process group; a single process is given the variables that it lacks.

    Raises:
        UserError: The environment does not suffice to form the group, or the others did not come.
    """
    variables = {name: os.environ[name] for name in LAUNCHER_VARIABLES if name in os.environ}
    single = variables.get("WORLD_SIZE", "1") == "1" and not variables.get("MASTER_ADDR")
    if variables and single:  # a shell or scheduler set some of them
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    try:
        with met():
            yield
    except (ValueError, RuntimeError) as error:
        if not variables or isinstance(error, UserError):
            raise
        reason = error_line(error)
        raise UserError(
            f"the environment is a launcher's ({', '.join(f'{k}={v}' for k, v in variables.items())}), but no group of "
            f"processes comes of it ({reason}); start by torchrun or accelerate launch, or unset these variables"
        ) from error


def joined() -> "PartialState":
    """The state of the process group; of this process alone where no launcher started it."""
    from accelerate import PartialState

    with joining():
        return PartialState(cpu=accelerator() is None, timeout=PATIENCE)


def run_on_main(act: Callable[[], T]) -> T:
    """Call `act` in the main process only and return its result (plain data) in every process.

    Raises:
        UserError: In every process, so that none hangs, where `act` raised a UserError or an OSError.
    """
    from accelerate.utils import broadcast_object_list

    outcome: list[Any] = [None, None]  # the result, the error
    if joined().is_main_process:
        try:
            outcome[0] = act()
        except (UserError, OSError) as error:
            outcome[1] = str(error)
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise UserError(outcome[1])
    return outcome[0]


def agree(value: object) -> bool:
    """Whether every process has the same value (plain data); all get the answer."""
    from accelerate.utils import gather_object

    joined()
    return all(other == value for other in gather_object([value]))


def check_alone(what: str) -> None:
    """Refuse a launcher's processes where each of them would do all of the work.

    Raises:
        UserError: There are several.
    """
    started = process_count()
    if "LOCAL_RANK" in os.environ and started != 1:
        raise UserError(f"the launcher started {started} processes, and {what} works in one; start it by itself")


def launched(processes: int) -> None:
    """Check that accelerate works with as many processes as the launcher started; else each would do all the work.

    Raises:
        UserError: The numbers differ.
    """
    started = process_count()
    if started != processes:
        raise UserError(
            f"the launcher started {started} processes, but accelerate works with {processes}; see accelerate config"
        )
