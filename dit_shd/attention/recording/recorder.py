"""Recording: what the attention modules of a running model did becomes Captures.

Our own attention modules hand over a Capture; those of others are instrumented (instrument.py). A Recorder of each
module takes either, and the Recording keeps what the last forward gave.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dit_shd.attention.bias import DenseBias
from dit_shd.attention.capture import Capture
from dit_shd.attention.recording import discovery
from dit_shd.attention.recording.joint import BlockChoice, Layout, Tokens, sections
from dit_shd.attention.recording.projection import ProjectionFinder
from dit_shd.attention.recording.sdpa_calls import Call, RawCall, joined
from dit_shd.core.errors import UserError

Sink = Callable[[str, Capture], None]
"""Takes a layer's name and its Capture while the model runs."""


LAYOUTS: "WeakKeyDictionary[nn.Module, list[Layout]]" = WeakKeyDictionary()
"""What the first recorded forward has shown about other people's attention modules, call by call."""


class Recorder:
    """Takes what one attention module does; `outer` is the Recorder of an enclosing capture, which is told as well."""

    def __init__(self, name: str, module: nn.Module, recording: "Recording", chosen: bool):
        self.name, self.module, self.recording, self.chosen = name, module, recording, chosen
        self.outer: Recorder | None = None
        self.ran: tuple[tuple[RawCall, ...], Tokens] | None = None
        self.turn = 0

    @property
    def armed(self) -> bool:
        """Whether a forward of the whole model is under way; a block recomputed in the backward is none."""
        return self.recording.armed or (self.outer is not None and self.outer.armed)

    def __call__(self, capture: Capture) -> None:
        """A module of ours has run."""
        if self.recording.armed:
            self.recording.check_graph(self)
            self.recording.deliver(self.name, capture)
        if self.outer is not None:
            self.outer(capture)

    def record(self, calls: list[RawCall], tokens: Tokens) -> None:
        """An instrumented module has run, with these calls of scaled_dot_product_attention."""
        if self.recording.armed:
            self.ran = (tuple(calls), tokens)
            if not torch.compiler.is_compiling():
                self.recording.check_graph(self)
                self.recording.flush(self)
        if self.outer is not None:
            self.outer.record(calls, tokens)


class Recording(Mapping[str, Capture]):
    """The Captures of the last forward of one model, by layer, in the order in which the layers ran."""

    def __init__(self, sink: Sink | None, choice: BlockChoice, projections: bool):
        self.sink, self.choice, self.projections = sink, choice, projections
        self.recorders: list[Recorder] = []
        self.armed = False
        self._with_graph = False
        self._found: dict[str, Capture] = {}
        self._handed = 0
        self._text: int | None = None
        self._watch: ProjectionFinder | None = None
        self._watching = ExitStack()
        self._turns = 0
        self._masks: dict[int, tuple[Tensor, DenseBias]] = {}

    def begin(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """A forward begins (a forward pre-hook)."""
        self._found, self._handed = {}, 0
        self._masks.clear()
        for recorder in self.recorders:
            recorder.ran = None
        self.armed, self._with_graph = True, torch.is_grad_enabled()
        text = kwargs.get("encoder_hidden_states")
        self._text = text.shape[1] if isinstance(text, Tensor) and text.ndim == 3 else None
        if not torch.compiler.is_compiling() and any(
            recorder.module not in LAYOUTS and not discovery.is_ours(recorder.module) for recorder in self.recorders
        ):
            self._watch = ProjectionFinder(model)
            self._watching.callback(torch.compiler.set_stance("force_eager").__exit__, None, None, None)
            self._watching.enter_context(self._watch)

    def end(self, model: nn.Module, args: Any, output: Any) -> None:
        """It has ended, or failed (a forward hook that is always called; the output is then None)."""
        self.armed = False
        if torch.compiler.is_compiling():
            return
        watch = self._watch
        self.stop()
        if output is None:
            return
        if watch is not None:
            self._learn(model, watch)
        self.flush()
        self._masks.clear()
        if not self._handed:
            raise UserError(f"capture: {type(model).__name__}: {self._why_nothing()}")

    def stop(self) -> None:
        """Leave nothing behind of a forward, also of one that was interrupted."""
        self.armed, self._watch = False, None
        self._watching.close()

    def _learn(self, model: nn.Module, watch: ProjectionFinder) -> None:
        """Keep what the first forward has shown."""
        layers = discovery.attention_layers(model)
        for recorder in self.recorders:
            if recorder.ran is not None and recorder.ran[0]:
                raw, tokens = recorder.ran
                results = [result for _, _, result in raw]
                LAYOUTS[recorder.module] = [
                    Layout.of(
                        watch.parts(mixed, recorder.name, layers),
                        watch.joins,
                        mixed.shape[2],
                        tokens.text_among(mixed.shape[2], self._text),
                    )
                    for mixed in results
                ]

    def _why_nothing(self) -> str:
        if self.choice.block != "joint":
            return (
                f"no layer that ran is known to join text and image tokens: there is no block '{self.choice.block}'; "
                "use block='joint', or say where the image tokens stand, as in image=slice(77, None)"
            )
        names = ", ".join(recorder.name for recorder in self.recorders)
        return f"no self-attention that can be recorded ran; cross-attention has to be named: layers={names}"

    def flush(self, recorder: Recorder | None = None) -> None:
        """Make Captures of what an instrumented module, or every one, did."""
        if self._watch is not None and recorder is not None:
            recorder.turn, self._turns = self._turns, self._turns + 1  # its projection is known at the end only
            return
        waiting = [recorder] if recorder is not None else sorted(self.recorders, key=lambda each: each.turn)
        for each in waiting:
            if each.ran is not None:
                (calls, tokens), each.ran = each.ran, None
                for name, capture in self._captures(each, calls, tokens):
                    self.deliver(name, capture)

    def deliver(self, name: str, capture: Capture) -> None:
        self._handed += 1
        if self.sink is None:
            self._found[name] = capture
        else:
            self.sink(name, capture)

    def check_graph(self, recorder: Recorder) -> None:
        """Refuse a layer whose captures would train nothing."""
        if (
            self._with_graph
            and not torch.is_grad_enabled()
            and any(p.requires_grad for p in recorder.module.parameters())
        ):
            raise UserError(
                f"capture: {recorder.name} ran without a graph inside a forward that has one, so no loss on it would "
                "train it; reentrant gradient checkpointing does that: use use_reentrant=False"
            )

    def _captures(self, recorder: Recorder, raw: Sequence[RawCall], tokens: Tokens) -> Iterator[tuple[str, Capture]]:
        if not raw:
            raise UserError(f"capture: {recorder.name}: {discovery.why_silent(recorder.module)}")
        try:
            calls = joined([Call.of(each) for each in raw])
        except ValueError as error:
            raise UserError(f"capture: {recorder.name}: {error}") from error
        for i, call in enumerate(calls):
            if not recorder.chosen and tokens.crosses(call, discovery.is_cross(recorder.module)):
                continue
            layout = self._layout(recorder, i)
            text = tokens.text_among(call.query.shape[2], self._text)
            name = recorder.name + (f"#{i + 1}" if i else "")
            try:
                for suffix, capture in sections(call, self._bias(call.mask), layout, text, self.choice):
                    yield name + suffix, capture
            except UserError as error:
                raise UserError(f"capture: {name}: {error}") from error

    def _layout(self, recorder: Recorder, call: int) -> Layout | None:
        layouts = LAYOUTS.get(recorder.module)
        layout = layouts[min(call, len(layouts) - 1)] if layouts else None
        if not self.projections:
            return None if layout is None else replace(layout, projections=())
        if layout is None:
            raise UserError(
                f"capture: {recorder.name}: its output projection has not been seen yet; run one forward inside "
                "capture() before model.compile(), or use torch.compile(model)"
            )
        if not layout.projections:
            raise UserError(f"capture: {recorder.name}: {discovery.NO_PROJECTION}")
        return layout

    def _bias(self, mask: Tensor | None) -> DenseBias | None:
        """The mask as a bias; layers that share a mask share it."""
        if mask is None:
            return None
        if id(mask) not in self._masks:
            self._masks[id(mask)] = (mask, DenseBias(mask))
        return self._masks[id(mask)][1]

    def __getitem__(self, name: str) -> Capture:
        self.flush()
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        self.flush()
        return iter(list(self._found))

    def __len__(self) -> int:
        self.flush()
        return len(self._found)
