"""The modules that called attention in forwards that were looked at, and what else these have shown."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import NoReturn, TypeVar

import torch

from dit_shd.attention.recording.discovery import INDEX
from dit_shd.attention.recording.joint import Layout
from dit_shd.attention.recording.site import Kind, Site
from dit_shd.attention.recording.writes import uncounted
from dit_shd.core.errors import UserError

T = TypeVar("T")
Key = tuple[object, ...]
ALIKE = 32
"""Forwards that are looked at until W^O, which was in another place once, is taken to stay where it is."""


class Sites(dict[str, Site]):
    """The modules that called attention in a forward, by name, in the order in which they ran."""

    numbers: Key = ()
    """What the weights were that are read of them between forwards."""
    settled = True
    """Whether all was seen; layers whose results were all zeros are looked at again in the next forward."""
    silent: Mapping[str, str] = {}
    """Modules that are attention by their names and called none, and why that may be."""
    idle: tuple[str, ...] = ()
    """Modules that are what these are, in the same sections, and did not run."""
    looks = 1
    """How many surveys there have been in search of those."""
    again = False
    """Whether there is another one."""
    shifting = 0
    """Where W^O is differs by forward: how many more forwards are looked at, if it is where it was in them."""
    waking = False
    """Whether that is since one of them ran."""
    by_hand: Mapping[str, str] = {}
    """Attention in the same sections that ran without calling it (maps computed by hand?), and why that may be."""
    shapes: tuple[tuple[int, ...], ...] = ()
    """Of all tensors that the model was given."""
    nested = False
    """Whether some lie in others, so that they do not end as they begin."""
    rewritten: tuple[str, ...] = ()
    """Those whose queries, keys, values or mask were written to after they ran."""
    places: Mapping[str, int] = {}
    """The number of the run, among those of all modules, that gave a capture of this name."""

    def unread(self) -> dict[str, str]:
        """What cannot be recorded of attention that ran, and why that may be."""
        refused = {name: f"cannot be recorded: {site.reason}" for name, site in self.items() if site.reason}
        return {**self.by_hand, **refused}

    def layout(self, site: Site, call: int, kind: Kind, square: bool) -> Layout:
        """What is known of a call of a layer, as Site.layout.

        Raises:
            UserError: Nothing.
        """
        layout = site.layout(call, kind, square)
        return layout or self._unknown(
            site.name + numbered(call), "what it is (self- or cross-attention, where W^O is)"
        )

    def check_writes(self, chosen: Collection[str]) -> None:
        """Refuse layers whose memory is written to after they ran, where that is not seen: in inference mode.

        Args:
            chosen: The names of those that are recorded.

        Raises:
            UserError: Naming the first one.
        """
        if self.rewritten and torch.is_inference_mode_enabled():
            for name in self.rewritten:
                if name in chosen:
                    raise uncounted(name)

    def ordered(self, made: dict[str, T], others: Sequence["Sites"]) -> dict[str, T]:
        """What a forward has made, as its layers ran: compiled ones hand over what they did only when it ends.

        Args:
            made: By the names of captures.
            others: Of other kinds of forwards, which may have shown more of the layers.

        Raises:
            UserError: None of these has shown all of them.
        """
        calls = {name: name.partition(":")[0] for name in made}
        places = next((each.places for each in (self, *others) if each.places.keys() >= {*calls.values()}), self.places)
        unseen = [name for name, call in calls.items() if call not in places]
        if unseen and len({call.partition("#")[0] for call in calls.values()}) > 1:
            self._unknown(unseen[0], "when it ran among the others (of compiled or nested layers)")
        return dict(sorted(made.items(), key=lambda item: places.get(calls[item[0]], len(places))))

    def _unknown(self, name: str, what: str) -> NoReturn:
        self.again = True
        raise UserError(
            f"capture: {name}: this call is none of those that were seen in recorded forwards of this kind, so {what} "
            "is not known; the next forward is looked at anew, and nothing is refused after one with all calls (in "
            "eval, where layers are dropped at random)"
        )


def numbered(i: int) -> str:
    """What the name of a module's capture from its i-th call (from 0) has more than the module's."""
    return f"#{i + 1}" if i else ""


def together(before: Sites, sites: Sites, ran: Collection[str]) -> Sites:
    """What two forwards have shown, in one of which layers were idle that the other one had.

    Args:
        before: Of the first.
        sites: Of the second, which counts where both have shown a layer.
        ran: The names of all modules that ran in the second.
    """
    idle = [name for name in before if name not in sites and name not in ran]
    if not idle:
        return sites
    both = Sites()
    for name in _in_order([name for name in before if name in sites or name in idle], list(sites)):
        both[name] = sites[name] if name in sites else _of(before[name], before.shapes == sites.shapes)
    both.settled, both.shapes, both.nested = sites.settled, sites.shapes, sites.nested or before.nested
    both.silent = {name: why for name, why in sites.silent.items() if name not in both}
    both.by_hand = {name: why for name, why in {**before.by_hand, **sites.by_hand}.items() if name not in both}
    asleep = (*sites.idle, *(name for name in before.idle if name not in ran))
    both.idle = tuple(name for name in dict.fromkeys(asleep) if name not in both)
    both.rewritten = tuple(dict.fromkeys((*sites.rewritten, *before.rewritten)))
    both.places = max(sites.places, before.places, key=len)
    return both


def _of(site: Site, same: bool) -> Site:
    """A layer of another forward; where that was given other shapes, no length of a text is that of these."""
    if same or all(layout.text is None for layout in site.layouts):
        return site
    layouts = (replace(x, text=None if x.text is None else replace(x.text, total=-1)) for x in site.layouts)
    return replace(site, layouts=tuple(layouts))


def _in_order(before: list[str], after: list[str]) -> list[str]:
    """Names of two forwards in the order in which they ran; by their numbers where neither has shown it."""
    merged: list[str] = []
    while before and after:
        first, second = before[0], after[0]
        if first == second:
            after.pop(0)
        takes_second = first in after and second not in before
        open_ = first not in after and second not in before
        if first != second and (takes_second or (open_ and _numbers(second) < _numbers(first))):
            merged.append(after.pop(0))
        else:
            merged.append(before.pop(0))
    return [*dict.fromkeys([*merged, *before, *after])]


def _numbers(name: str) -> list[int]:
    return [int(each) for each in INDEX.findall(name)]
