"""The modules that hold W^O: a forward in which one does not run takes its rows to another, whose weights are theirs.

Which module a layer's rows arrive at is seen in the first forward. Models that choose it by what they are given (a
projection for each modality, experts by timestep) are looked at in every forward, once that is noticed.
"""

import logging
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from weakref import ref

import torch
from torch import nn

from dit_shd.attention.capture import Capture
from dit_shd.attention.recording.instrument import recorded
from dit_shd.attention.recording.projection import Projection
from dit_shd.attention.recording.recorder import Closed, Host, Onlooker
from dit_shd.attention.recording.sdpa_calls import Given, RawCall
from dit_shd.attention.recording.sites import Sites
from dit_shd.attention.recording.tokens import Tokens
from dit_shd.core.errors import UserError

_log = logging.getLogger("dit_shd")


class _Holder(Onlooker):
    """At one of them."""

    wants_calls = False

    def __init__(self, among: "Holders"):
        super().__init__(among.recording)
        self.among, self.ran = among, False

    @property
    def armed(self) -> bool:
        """Whether a forward is under way, and no module is being asked for its weights."""
        return self.recording.armed and not self.among.asking

    def record(self, calls: list[RawCall], tokens: Tokens, given: Given) -> None:
        """The module has run."""
        self.ran = True


class Holders:
    """Notes which of them run.

    Args:
        recording: Of the model.
        contexts: Which take the notes' makers off again.
    """

    def __init__(self, recording: Host, contexts: ExitStack):
        self.recording, self.contexts, self.asking = recording, contexts, False
        self._all: dict[nn.Module, _Holder] = {}
        self._begun, self._of = False, dict[str, Iterable[Projection | None]]()

    def look(self, holders: Iterable["ref[nn.Module]"]) -> None:
        """Do so."""
        for module in (each() for each in holders):
            if module is not None and module not in self._all and not isinstance(module, torch.jit.ScriptModule):
                self._all[module] = _Holder(self)
                self.contexts.enter_context(recorded(module, self._all[module]))

    def close(self) -> None:
        """They hold the recording no more."""
        self.recording = Closed()
        for each in self._all.values():
            each.close()

    def leave(self) -> None:
        """A forward is looked at: what it shows is true of it."""
        self._begun, self._of = False, {}

    def begin(self) -> None:
        """A forward begins of which all is known."""
        self._begun, self._of = True, {}
        for each in self._all.values():
            each.ran = False

    @contextmanager
    def while_asking(self) -> Generator[None]:
        """A block in which modules run to be asked for their weights."""
        before, self.asking = self.asking, True
        try:
            yield
        finally:
            self.asking = before

    def read(self, name: str, projections: Iterable[Projection | None]) -> None:
        """A capture of this name has been made, by what is known of its layer's projections."""
        if self._begun:
            self._of[name] = projections

    def end(self, made: dict[str, Capture], sites: Sites, handed_on: bool) -> None:
        """A forward has ended: captures whose W^O is of a module that did not run in it lose theirs.

        Args:
            made: By name; those that lose theirs are replaced.
            sites: What was known of the forward.
            handed_on: Captures are at work already.

        Raises:
            UserError: They have been, with W^O that is not theirs.
        """
        idle = {name: each for name, of in self._of.items() if (each := self._idle(of)) is not None}
        self.leave()
        if not idle:
            return
        sites.shifting = True
        name, projection = next(iter(idle.items()))
        why = (
            f"{projection.name}, which had W^O in a forward before, did not run in this one: which module has it is "
            "looked for in every forward from the next one on"
        )
        if handed_on:
            raise UserError(f"capture: {name}: {why}; its loss was of that W^O, so leave this step out")
        made.update({name: made[name].without_out(why) for name in idle if name in made})
        more = f" and {len(idle) - 1} more" if len(idle) > 1 else ""
        _log.warning("capture: %s%s: %s; this forward has none", name, more, why)

    def _idle(self, projections: Iterable[Projection | None]) -> Projection | None:
        """The first of some projections whose module did not run."""
        for projection in projections:
            module = None if projection is None else projection.holder
            holder = None if module is None else self._all.get(module)
            if holder is not None and not holder.ran:
                return projection
        return None
