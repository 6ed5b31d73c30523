"""Layers that ran in no forward that was looked at: it is noticed when they do, and they are looked at then."""

import logging
from collections.abc import Collection
from contextlib import ExitStack

from torch import nn

from dit_shd.attention.recording.discovery import plain
from dit_shd.attention.recording.instrument import recorded
from dit_shd.attention.recording.knowledge import woken
from dit_shd.attention.recording.recorder import Closed, Host, Onlooker
from dit_shd.attention.recording.sdpa_calls import Given, RawCall
from dit_shd.attention.recording.sites import Sites
from dit_shd.attention.recording.tokens import Tokens

_log = logging.getLogger("dit_shd")


class _Sleeper(Onlooker):
    """At one of them."""

    ran = False

    def record(self, calls: list[RawCall], tokens: Tokens, given: Given) -> None:
        """The module has run."""
        if calls:
            self.ran = True


class Sleepers:
    """Sets a _Sleeper at each layer that is idle.

    Args:
        model: That is recorded.
        recording: Of it.
        contexts: Which take them off again.
    """

    def __init__(self, model: nn.Module, recording: Host, contexts: ExitStack):
        self.model, self.recording, self.contexts = model, recording, contexts
        self._all: dict[str, _Sleeper] = {}

    def look(self, idle: Collection[str]) -> None:
        """Do so, for layers of these names."""
        new = set(idle) - self._all.keys()
        for path, module in self.model.named_modules() if new else ():
            if (name := plain(path)) in new:
                self._all[name] = _Sleeper(self.recording)
                self.contexts.enter_context(recorded(module, self._all[name]))

    def close(self) -> None:
        """They hold the recording no more."""
        self.recording = Closed()
        for each in self._all.values():
            each.close()

    def begin(self) -> None:
        """A forward begins."""
        for each in self._all.values():
            each.ran = False

    def end(self, sites: Sites, called: Collection[str]) -> None:
        """A forward has ended: of layers that ran all the same a line is logged, and the next forward is looked at.

        Args:
            sites: What was known of it.
            called: The names of layers of which another kind of forward had told enough.
        """
        ran = [x for x in sites.idle if x in self._all and self._all[x].ran and x not in called]
        if ran and woken(sites):
            more = f" and {len(ran) - 1} more" if len(ran) > 1 else ""
            _log.warning(
                "capture: %s: %s%s ran, as in none of the forwards that were looked at, and is not among the captures "
                "of this one; the next forward is looked at anew, and from the first one on that has it it is recorded",
                type(self.model).__name__,
                ran[0],
                more,
            )
