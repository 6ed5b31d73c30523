"""A module that calls attention, as a forward has shown it: what each of its calls is."""

from dataclasses import dataclass
from weakref import ref

from torch import nn

from dit_shd.attention.recording.joint import Layout
from dit_shd.attention.recording.projection import PassingProjection, Projection
from dit_shd.attention.recording.sdpa_calls import Call
from dit_shd.attention.recording.tokens import Tokens

Kind = tuple[int, int]
"""Of a call: how many sequences its module was given in that run, and its number; 0 of samples one at a time."""


@dataclass(frozen=True, eq=False)
class Site:
    """A module that calls attention."""

    name: str
    module: ref[nn.Module]
    layouts: tuple[Layout, ...]
    """Of its calls in one forward, in order; runs that take their samples one by one count as one call."""
    reason: str = ""
    """Why it cannot be recorded at all."""
    kinds: tuple[Kind, ...] = ()
    """Of its calls."""
    holders: tuple[ref[nn.Module], ...] = ()
    """Of its W^O, those that run by themselves."""
    asleep: tuple[ref[nn.Module], ...] = ()
    """Modules with weights beside those, in the same part of the layer, that did not run: an adapter, say."""

    @property
    def unasked(self) -> bool:
        """Whether none of its calls is recorded unless it is named."""
        return all(layout.unasked for layout in self.layouts)

    @property
    def projections(self) -> list[Projection]:
        """Where its W^O are."""
        return [each for layout in self.layouts for each in layout.projections if each is not None]

    @property
    def passing(self) -> list[PassingProjection]:
        """Its projections that have to be watched in every forward."""
        return [projection for projection in self.projections if isinstance(projection, PassingProjection)]

    def layout(self, call: int, kind: Kind, square: bool) -> Layout | None:
        """Of a call; forwards may make others than the first one did, of which that is known if such calls are alike.

        Args:
            call: Its number.
            kind: Its own.
            square: Whether it has as many keys as queries.
        """
        if call < len(self.layouts) and self.kinds[call] == kind:
            return self.layouts[call]
        those = [layout for layout, known in zip(self.layouts, self.kinds) if known == kind]
        alike = bool(those) and those[0].square == square and all(those[0].same(each) for each in those)
        return those[0] if alike else None


def kind_of(call: Call, number: int, tokens: Tokens) -> Kind:
    """The kind of a call.

    Args:
        call: One of those of a run, which are joined.
        number: Among these.
        tokens: What the module was given.
    """
    return len(tokens.lengths), number if call.share == 1 else 0
