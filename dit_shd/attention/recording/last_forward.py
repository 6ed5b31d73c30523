"""The mapping that a recording is to its users."""

import threading
from abc import abstractmethod
from collections.abc import Iterator, Mapping

import torch

from dit_shd.attention.capture import Capture
from dit_shd.core.errors import UserError


class LastForward(Mapping[str, Capture]):
    """The Captures of the last forward of one model, by layer, in the order in which the layers ran.

    Args:
        name: Of the model's class.
    """

    def __init__(self, name: str):
        self.name = name
        self._thread = threading.get_ident()
        self.unseen = False
        """Whether the model has run as a part of a compiled program since its last forward that was recorded."""
        self._found: dict[str, Capture] = {}

    def check_thread(self, changes: bool) -> None:
        """Refuse a forward of another thread, whose captures would be taken for this one's.

        What is computed again in a backward, in a thread of autograd's on a GPU, is none of another's.

        Args:
            changes: Whether another thread may go on now.

        Raises:
            UserError: It may not.
        """
        if torch._C._current_graph_task_id() != -1:  # as torch.utils.checkpoint asks
            return
        thread = threading.get_ident()
        if thread != self._thread and not changes:
            raise UserError(
                f"capture: this {self.name} is recorded by another thread, which would have this forward's captures; "
                "open capture in the thread that runs the model, and give each thread a model of its own"
            )
        self._thread = thread

    @abstractmethod
    def flush(self) -> None:
        """Make Captures of what the modules did."""

    def catch_up(self) -> None:
        """Make Captures of what the modules did, if that was the model's last forward.

        Raises:
            UserError: It has run since, where it could not be recorded.
        """
        if self.unseen:
            raise UserError(
                f"capture: {self.name} ran inside of a function or model that torch.compile compiled as a whole, where "
                f"it is not recorded; compile {self.name} itself, call it outside of that function, and give it to "
                "capture"
            )
        self.flush()

    def __getitem__(self, name: str) -> Capture:
        self.catch_up()
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        self.catch_up()
        return iter(list(self._found))

    def __len__(self) -> int:
        self.catch_up()
        return len(self._found)
