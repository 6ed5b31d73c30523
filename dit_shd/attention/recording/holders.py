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
        self._begun, self._of = False, dict[str, tuple[Site, Iterable[Projection | None]]]()

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

    def read(self, name: str, site: Site, projections: Iterable[Projection | None]) -> None:
        """A capture of this name has been made, by what is known of its layer's projections."""
        if self._begun:
            self._of[name] = site, projections

    def end(self, made: dict[str, Capture], sites: Sites, handed_on: bool) -> None:
        """A forward has ended: captures whose W^O is another in it lose theirs, if it is not in training.

        Args:
            made: By name; those that lose theirs are replaced.
            sites: What was known of the forward.
            handed_on: Captures are at work already.

        Raises:
            UserError: They have been, with W^O that is not theirs.
        """
        wrong = {name: why for name, of in self._of.items() if (why := self._wrong(*of))}
        self.leave()
        if not wrong:
            return
        sites.shifting = True
        name, why = next(iter(wrong.items()))
        if handed_on:
            raise UserError(f"capture: {name}: {why}; its loss was of that W^O, so leave this step out")
        made.update({name: made[name].without_out(why) for name in wrong if name in made})
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        _log.warning("capture: %s%s: %s; this forward has none", name, more, why)

    def _wrong(self, site: Site, projections: Iterable[Projection | None]) -> str:
        """Why the W^O that is known of a layer is not that of this forward; of one in training nobody asks."""
        what = ""
        for projection in projections:
            module = None if projection is None else projection.holder
            holder = None if module is None or _trains(module) else self._all.get(module)
            if projection is not None and holder is not None and not holder.ran:
                what = f"{projection.name}, which had W^O in a forward before, did not run in this one"
        for module in (each() for each in site.asleep):
            if module is not None and not _trains(module) and self._all[module].ran:
                what = what or f"a {plain_class(module).__name__} beside W^O ran, as it did not in a forward before"
        return f"{what}: where W^O is, is looked for in every forward from the next one on" if what else ""


def _trains(module: nn.Module) -> bool:
    return torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
