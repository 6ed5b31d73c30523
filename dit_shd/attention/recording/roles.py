"""Self, cross, image and text: what the lineages of one forward say about the calls of attention in it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dit_shd.attention.recording.lineage import INPUT, Lineage, Segments, Streams

Role = Literal["self", "cross", "pooling", "unknown"]
"""Whose keys a layer's queries see: their own sequence's, another one's; pooling: one query over its whole sequence."""
Order = Literal["plain", "text first", "image first", "unknown"]
_TEXT = re.compile(r"encoder_hidden|context|te?xt|caption|prompt|cond|instruct|word", re.IGNORECASE)


@dataclass(frozen=True)
class Given:
    """One sequence that a module or a model was given."""

    name: str
    length: int
    streams: Streams


Stream = Literal["text", "image"]


class Lengths:
    """How many tokens of text and of the image the layers of a forward had; of one stream alone, all of them."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, Stream], int] = {}

    def note(self, name: str, n: int, text: int | None, order: Order) -> None:
        """A layer ran on n tokens; text: how many of them are, if they are joined and that is known."""
        if text is not None or order == "plain":
            self._known.setdefault((name, "text"), n if text is None else text)
            self._known.setdefault((name, "image"), n - (text or 0))

    def of(self, name: str, stream: Stream) -> int | None:
        """What the first call of a layer had, if it ran."""
        return self._known.get((name, stream))

    def clear(self) -> None:
        """Another forward begins."""
        self._known.clear()


@dataclass(frozen=True)
class TextLength:
    """From what the number of text tokens in a joint sequence follows, in any forward."""

    place: Literal["module", "model", "layer", "fixed"]
    name: str
    """Of an input of the module or the model, or of a layer before."""
    of: Stream
    """Whose length that has."""
    total: int
    text: int
    """Lengths in the first forward: what holds if nothing else is known, and the model is given the same shapes."""

    def among(
        self, n: int, module: Mapping[str, int], model: Mapping[str, int], layers: Lengths, same: bool
    ) -> int | None:
        """How many of n tokens are text.

        Args:
            n: All tokens.
            module: The lengths of what the module was given, by name.
            model: The lengths of what the model was given.
            layers: What the layers before had.
            same: Whether the model was given what it was given in the first forward, by the shapes.
        """
        if self.place == "layer":
            length = layers.of(self.name, self.of)
        else:
            length = (module if self.place == "module" else model).get(self.name)
        if length is None:
            return self.text if same and n == self.total else None
        return length if self.of == "text" else n - length


def role_of(query: Lineage | None, key: Lineage | None, n: int, m: int) -> Role:
    """The role of a call with n queries and m keys."""
    if query is None or key is None:
        return "unknown"
    if not query.streams & key.streams:
        return "cross"
    shared = sum(length for length, streams in key.segments if streams & query.streams) if key.segments else m
    return "pooling" if n == 1 < m and shared != 1 and query.segments == () else "self"


def image_streams(calls: Iterable[Lineage | None], outputs: Sequence[Lineage]) -> Streams:
    """The streams that are the image's among those that calls join; nothing, if that is not known.

    What the model gives has the tokens of its image. Where it gives several sequences, names of inputs decide.
    """
    joined = {streams for lineage in calls if lineage for _, streams in lineage.segments if streams}
    every = frozenset[str]().union(*joined)
    given = {lineage.streams & every for lineage in outputs if lineage.level == INPUT} - {frozenset[str]()}
    if len(given) == 1:
        (streams,) = given
        if any(not each & streams for each in joined):
            return streams
    texts = {name for name in every if _TEXT.search(name)}
    return every - texts if texts and texts != every else frozenset()


def order_at(segments: Segments, image: Streams, edge: int) -> tuple[Order, int]:
    """The same of a sequence whose two parts, which meet at an edge, have projections of their own."""
    at, sides = 0, [False, False]
    for length, streams in segments:
        if streams & image:
            sides = [sides[0] or at < edge, sides[1] or at + length > edge]
        at += length
    if sides[0] == sides[1]:
        return "unknown", 0
    return ("image first", at - edge) if sides[0] else ("text first", edge)


def order_of(segments: Segments, image: Streams) -> tuple[Order, int]:
    """How text and image stand in a sequence, and how many tokens are text."""
    if not image or not any(streams & image for _, streams in segments):
        several = len({streams for _, streams in segments if streams}) > 1
        return ("unknown" if several and not image else "plain"), 0
    runs: list[bool] = []
    text = waiting = 0
    for length, streams in segments:
        if not streams:  # the model's own tokens (registers, say) go with those after them, or with the last ones
            waiting += length
            continue
        is_text = not streams & image
        text += (length + waiting) * is_text
        waiting = 0
        if not runs or runs[-1] != is_text:
            runs.append(is_text)
    text += waiting * (bool(runs) and runs[-1])
    if len(runs) > 2:
        return "unknown", 0
    return ("plain" if not text else "text first" if runs[0] else "image first"), text


def text_length(
    text: int, total: int, image: Streams, words: Streams, module: Sequence[Given], model: Sequence[Given]
) -> TextLength:
    """From what the number of text tokens follows, by what the module and the model were given.

    Args:
        text: The number.
        total: Of all tokens.
        image: The streams that are the image's.
        words: Those that are the text's, as far as they are known: another input may be as long.
        module: What the module was given.
        model: What the model was given.
    """
    places: tuple[tuple[Literal["module", "model"], Sequence[Given]], ...] = (("module", module), ("model", model))
    for place, inputs in places:
        for each in inputs:
            of_text = each.streams and not each.streams & image and _are_of(each.streams, words)
            if each.length == text and of_text:
                return TextLength(place, each.name, "text", total, text)
    for place, inputs in places:
        for each in inputs:
            if each.length == total - text and each.streams and each.streams <= image:
                return TextLength(place, each.name, "image", total, text)
    return TextLength("fixed", "", "text", total, text)


def _are_of(streams: Streams, words: Streams) -> bool:
    """Whether streams are the text's, or what those were made of (`tokens, embedding 1`); True if they are unknown."""
    return not words or all(any(f"{word},".startswith(f"{each},") for word in words) for each in streams)
