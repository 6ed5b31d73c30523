"""How many tokens of text the layers of one forward have, where they join text and image."""

from typing import Any

from dit_shd.attention.recording.joint import Layout
from dit_shd.attention.recording.roles import Lengths
from dit_shd.attention.recording.tokens import Tokens, shapes_of, tokens_of


class TextLengths:
    """What the model was given in the forward under way, and how long the sequences of its layers were so far."""

    def __init__(self) -> None:
        self._given: dict[str, int] = {}
        """The lengths of the sequences that the model was given."""
        self._shapes: tuple[tuple[int, ...], ...] = ()
        """Of all tensors that it was given."""
        self._lengths = Lengths()

    def begin(self, names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward begins, of arguments whose names by position are these."""
        self._given, self._shapes = tokens_of(names, args, kwargs).lengths, shapes_of((args, kwargs))
        self._lengths.clear()

    def of(self, layer: str, n: int, layout: Layout, tokens: Tokens, shapes: tuple[tuple[int, ...], ...]) -> int | None:
        """How many of a layer's n tokens are text, if that is known.

        Args:
            layer: Its name.
            n: All tokens.
            layout: What is known of it.
            tokens: What its module was given.
            shapes: Of what the model was given when that was seen.
        """
        known, same = layout.text, self._shapes == shapes
        text = None if known is None else known.among(n, tokens.lengths, self._given, self._lengths, same)
        self._lengths.note(layer, n, text, layout.order)
        return text
