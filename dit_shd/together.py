"""What one process of several does for all."""

from collections.abc import Callable
from typing import Any, TypeVar

from dit_shd.errors import UserError

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
