"""The modules that hold W^O: a forward in which one does not run, or one beside it does, has another W^O.

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
from dit_shd.attention.recording.instrument import plain_class, recorded
from dit_shd.attention.recording.projection import Projection
from dit_shd.attention.recording.recorder import Closed, Host, Onlooker
from dit_shd.attention.recording.sdpa_calls import Given, RawCall
from dit_shd.attention.recording.site import Site
from dit_shd.attention.recording.sites import ALIKE, Sites
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
        """Whether a forward without a graph is under way, and no module is being asked for its weights.

        One with a graph is a student's, whose W^O nobody reads: it is noted nowhere, so that no program is another one.
        """
        return self.among.begun and self.recording.armed and not self.among.asking

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
        self.begun, self._of = False, dict[str, tuple[Site, Iterable[Projection | None]]]()
        self._read = set[str]()

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
        self._all, self._of = {}, {}  # they know each other

    def leave(self) -> None:
        """A forward is looked at: what it shows is true of it."""
        self.begun, self._of, self._read = False, {}, set()

    def begin(self) -> None:
        """A forward begins of which all is known."""
        self.leave()
        self.begun = not torch.is_grad_enabled()
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

    def noted(self, name: str, capture: Capture, site: Site, projections: Iterable[Projection | None]) -> Capture:
        """A capture that has been made by what is known of its layer's projections, and tells when W^O is read."""
        if not self.begun:
            return capture
        self._of[name] = site, projections
        return capture.read_by(lambda: self._read.add(name))

    def end(self, made: dict[str, Capture], sites: Sites, handed_on: bool) -> None:
        """A forward has ended: captures whose W^O is another in it lose theirs.

        Args:
            made: By name; those that lose theirs are replaced.
            sites: What was known of the forward.
            handed_on: Captures are at work already.

        Raises:
            UserError: They are, and W^O that is not theirs was read.
        """
        wrong = {name: why for name, of in self._of.items() if (why := self._wrong(*of))}
        read = [name for name in wrong if name in self._read]
        self.leave()
        if not wrong:
            return
        sites.shifting = ALIKE
        name, why = next(iter(wrong.items()))
        if handed_on and read:
            raise UserError(f"capture: {read[0]}: {wrong[read[0]]}; its loss was of that W^O, so leave this step out")
        made.update({name: made[name].without_out(why) for name in wrong if name in made})
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        _log.warning("capture: %s%s: %s; this forward has none", name, more, why)

    def _wrong(self, site: Site, projections: Iterable[Projection | None]) -> str:
        """Why the W^O that is known of a layer is not that of this forward."""
        what = ""
        for projection in projections:
            module = None if projection is None else projection.holder
            holder = None if module is None else self._all.get(module)
            if projection is not None and holder is not None and not holder.ran:
                what = f"{projection.name}, which had W^O in a forward before, did not run in this one"
        for module in (each() for each in site.asleep):
            holder = None if module is None else self._all.get(module)
            if module is not None and holder is not None and holder.ran:
                what = what or f"a {plain_class(module).__name__} beside W^O ran, as it did not in a forward before"
        return f"{what}: where W^O is, is looked for in every forward from the next one on" if what else ""
