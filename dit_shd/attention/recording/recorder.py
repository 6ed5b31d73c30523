"""What takes the work of one module while a model is recorded, for the Recording (captures.py) of the model."""

import itertools
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dit_shd.attention.capture import Capture
from dit_shd.attention.recording.discovery import plain
from dit_shd.attention.recording.instrument import recorded, set_again
from dit_shd.attention.recording.products import Product, is_product
from dit_shd.attention.recording.projection import PassingProjection
from dit_shd.attention.recording.sdpa_calls import Given, RawCall, See
from dit_shd.attention.recording.tokens import Tokens

Ran = tuple[tuple[RawCall, ...], Tokens, Any]
"""The calls of one run, what it was given, and the run before it in the same forward (or None)."""


class Host(Protocol):
    """The recording of a model."""

    armed: bool
    """Whether a forward of the whole model is under way."""

    def check_graph(self, recorder: "Recorder", graph: bool) -> None:
        """Refuse a layer whose captures would train nothing."""
        ...

    def deliver(self, name: str, capture: Capture) -> None:
        """Keep a Capture, or hand it on."""
        ...

    def flush(self, recorder: "Recorder | None" = None) -> None:
        """Make Captures of what an instrumented module, or every one, did."""
        ...


class Closed:
    """The recording of nothing, any more."""

    armed = False

    def check_graph(self, recorder: "Recorder", graph: bool) -> None:
        """Nothing is recorded."""

    def deliver(self, name: str, capture: Capture) -> None:
        """Nothing is kept."""

    def flush(self, recorder: "Recorder | None" = None) -> None:
        """Nothing is made."""


class Onlooker:
    """At a module of which nothing but calls of attention is of interest."""

    eager, wants_calls = False, True

    def __init__(self, recording: Host):
        self.recording = recording

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A copy or a pickle of a module that is recorded has none."""
        return type(None), ()

    @property
    def armed(self) -> bool:
        """Whether a forward of the whole model is under way; a block recomputed in the backward is none."""
        return self.recording.armed

    def see(self) -> See | None:
        """No function is of interest by itself."""
        return None

    def close(self) -> None:
        """It is taken off its module, and does not hold its recording."""
        self.recording = Closed()


class Recorder(Onlooker):
    """Takes what one attention module does."""

    def __init__(self, name: str, module: nn.Module, recording: Host):
        super().__init__(recording)
        self.name, self.module = name, module
        self.outer: Recorder | None = None
        """Of an enclosing capture, for a module of dit_shd, which has room for one."""
        self.ran: Ran | None = None
        self.count = 0
        """How many calls of this forward have become captures."""
        self.inside: list[Inner] = []
        """At the modules in this one that call attention, too."""

    def __call__(self, capture: Capture) -> None:
        """A module of dit_shd has run."""
        if self.recording.armed:
            self.recording.check_graph(self, torch.is_grad_enabled())
            self.count += 1
            self.recording.deliver(self.name + (f"#{self.count}" if self.count > 1 else ""), capture)
        if self.outer is not None:
            self.outer(capture)

    def record(self, calls: list[RawCall], tokens: Tokens, given: Given) -> None:
        """An instrumented module has run, with these calls of scaled_dot_product_attention."""
        self.ran = (tuple(calls), tokens, self.ran)
        if not torch.compiler.is_compiling():
            self.recording.check_graph(self, torch.is_grad_enabled())
            self.recording.flush(self)

    def close(self) -> None:
        """As any, and those inside; what it has seen is still there."""
        super().close()
        for each in self.inside:
            each.close()

    def begin(self) -> None:
        """A forward begins."""
        self.ran, self.count = None, 0
        for each in self.inside:
            each.made = None

    def runs(self) -> list[tuple[tuple[RawCall, ...], Tokens]]:
        """The runs that have not become captures yet, the first one first; without those of modules inside alone."""
        inner = [result for each in self.inside for result in each.taken()]  # held, so that their ids are theirs
        ids = {id(result) for result in inner}
        runs: list[tuple[tuple[RawCall, ...], Tokens]] = []
        while self.ran is not None:
            calls, tokens, self.ran = self.ran
            kept = tuple(call for call in calls if id(call[2]) not in ids)
            if kept or not calls:
                runs.append((kept, tokens))
        return runs[::-1]


Made = tuple[tuple[Tensor, ...], Any]
"""The results of the calls of one run, and those of the run before it (or None)."""


class Inner(Onlooker):
    """At attention inside of a layer that calls it itself, too: what the layer's Recorder sees of it is not its own."""

    def __init__(self, module: nn.Module, recording: Host):
        super().__init__(recording)
        self.module = module
        self.made: Made | None = None

    def record(self, calls: list[RawCall], tokens: Tokens, given: Given) -> None:
        """The inner module has run."""
        self.made = (tuple([call[2] for call in calls]), self.made)

    def taken(self) -> Iterator[Tensor]:
        """What attention gave it since this was asked last."""
        while self.made is not None:
            results, self.made = self.made
            yield from results


class Nesting:
    """Sets an Inner at each attention module inside of a recorded one.

    Args:
        model: That is recorded.
        contexts: Which take the Inners off again.
    """

    def __init__(self, model: nn.Module, contexts: ExitStack):
        self.model, self.contexts = model, contexts
        self._recorders: list[Recorder] = []
        self._names: Collection[str] | None = None

    def look(self, recorders: Collection[Recorder], names: Collection[str], idle: Collection[str]) -> None:
        """Do so; names: of what calls attention, idle: of what may in other forwards."""
        if list(recorders) == self._recorders and names is self._names:
            return
        self._recorders, self._names = list(recorders), names
        wanted = {*names, *idle}
        attention = {module for path, module in self.model.named_modules() if plain(path) in wanted}
        for recorder in self._recorders:
            known = {recorder.module, *(each.module for each in recorder.inside)}
            for module in attention.intersection(recorder.module.modules()) - known:
                recorder.inside.append(Inner(module, recorder.recording))
                self.contexts.enter_context(recorded(module, recorder.inside[-1]))


class SlowPaths:
    """Sets a SlowPath at each module whose fast path hides attention layers that are recorded.

    Args:
        recording: Of the model.
        model: That is recorded.
        contexts: Which take them off again.
    """

    def __init__(self, recording: Host, model: nn.Module, contexts: ExitStack):
        self.recording, self.model, self.contexts = recording, model, contexts
        self._known = set[nn.Module]()
        self._all = list[SlowPath]()

    def look(self, layers: Collection[nn.Module]) -> None:
        """Do so; layers: those that are recorded."""
        for module in hiding(self.model, layers) - self._known:
            self._known.add(module)
            self._all.append(SlowPath(self.recording))
            self.contexts.enter_context(recorded(module, self._all[-1]))

    def close(self) -> None:
        """They hold the recording no more."""
        self.recording = Closed()
        for each in self._all:
            each.close()


def hiding(model: nn.Module, layers: Collection[nn.Module]) -> set[nn.Module]:
    """PyTorch's encoder layers and encoders of a model that hold some attention layers, which their fast path hides."""
    encoders = [x for x in model.modules() if isinstance(x, (nn.TransformerEncoderLayer, nn.TransformerEncoder))]
    return {encoder for encoder in encoders if not set(layers).isdisjoint(encoder.modules())}


class SlowPath(Onlooker):
    """At a module of PyTorch whose eval fast path hides attention: while one is armed, the module takes the other."""

    def record(self, calls: list[RawCall], tokens: Tokens, given: Given) -> None:
        """The attention inside of it has been recorded by its own recorder."""


class ProductRecorder(Onlooker):
    """Takes the weights of a projection that are at hand only while it runs."""

    def __init__(self, projection: PassingProjection, recording: Host):
        super().__init__(recording)
        self.projection, self._busy = projection, False

    def begin(self) -> None:
        """A forward begins; one with a graph is a student's, whose W^O is not read, so that nothing leaves programs."""
        self.projection.begin()
        module, eager = self.projection.module(), not torch.is_grad_enabled()
        if module is not None and eager != self.eager:
            self.eager = eager
            set_again(module)

    @property
    def armed(self) -> bool:
        """Whether a forward is under way, and the module is not being asked for its weights."""
        return self.recording.armed and not self._busy and not torch.compiler.is_compiling()

    def see(self) -> See | None:
        """What counts the products of one run, and takes the one that is wanted."""
        count = itertools.count()

        def see(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self._busy and is_product(function) and next(count) == self.projection.ordinal:
                self._take(self.projection.among(function, args, kwargs))

        return see

    def record(self, calls: list[RawCall], tokens: Tokens, given: Given) -> None:
        """The module has run."""
        self._take(None, given)
        self.recording.flush()

    def _take(self, product: Product | None, given: Given = ((), {})) -> None:
        self._busy = True
        try:
            self.projection.take(product, given)
        finally:
            self._busy = False


class Products:
    """Sets a ProductRecorder at each such projection.

    Args:
        recording: Of the model.
        contexts: Which take them off again.
    """

    def __init__(self, recording: Host, contexts: ExitStack):
        self.recording, self.contexts = recording, contexts
        self._all: list[ProductRecorder] = []

    def look(self, projections: Iterable[PassingProjection]) -> None:
        """Do so."""
        for projection in projections:
            module = projection.module()
            if module is not None and not any(each.projection is projection for each in self._all):
                self._all.append(ProductRecorder(projection, self.recording))
                self.contexts.enter_context(recorded(module, self._all[-1]))

    def begin(self) -> None:
        """A forward begins."""
        for each in self._all:
            each.begin()

    def close(self) -> None:
        """They hold the recording no more."""
        self.recording = Closed()
        for each in self._all:
            each.close()
