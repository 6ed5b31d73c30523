"""Recording: what the attention modules of a running model did becomes Captures.

Attention modules of dit_shd hand over a Capture; those of others are instrumented (instrument.py) as soon as a first
forward has shown which they are (survey.py). A Recorder of each module takes either, and the Recording keeps what the
last forward gave.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from dit_shd.attention.capture import Capture
from dit_shd.attention.recording import discovery, knowledge
from dit_shd.attention.recording.holders import Holders
from dit_shd.attention.recording.idle import Sleepers
from dit_shd.attention.recording.instrument import places_of, watched_later
from dit_shd.attention.recording.joined_calls import joined
from dit_shd.attention.recording.joint import Biases, sections
from dit_shd.attention.recording.last_forward import LastForward
from dit_shd.attention.recording.recorder import Nesting, Products, Recorder, SlowPaths
from dit_shd.attention.recording.report import Report, why_empty
from dit_shd.attention.recording.sdpa_calls import Call, RawCall, inputs_written, noted, result_written, unchanged
from dit_shd.attention.recording.selection import Selection
from dit_shd.attention.recording.site import Site, kind_of
from dit_shd.attention.recording.sites import Key, Sites, numbered
from dit_shd.attention.recording.structure import Structure
from dit_shd.attention.recording.survey import Survey
from dit_shd.attention.recording.text_lengths import TextLengths
from dit_shd.attention.recording.tokens import Tokens
from dit_shd.attention.recording.writes import written_to
from dit_shd.core.errors import UserError

Sink = Callable[[str, Capture], None]
"""Takes a layer's name and its Capture while the model runs."""


class Recording(LastForward):
    """What records one model: the Captures of its last forward.

    Args:
        model: That is recorded.
        selection: Which of its layers are wanted, and which part of their maps.
        at: Sets a Recorder at a module, for the length of a context.
        keeps_teacher: Around another capture of the same model, keep a forward without a graph (the teacher's) when one
            with a graph (the student's) follows.
    """

    def __init__(self, model: nn.Module, selection: Selection, sink: Sink | None, at: Any, keeps_teacher: bool = True):
        self._core = discovery.unwrapped(model)
        super().__init__(type(self._core).__name__)
        self.model, self.selection, self.sink, self.at = model, selection, sink, at
        self.keeps_teacher = keeps_teacher
        self.recorders: dict[str, Recorder] = {}
        self._chosen: set[str] = set()
        self.armed = False
        self._ours = bool(discovery.own_layers(model))
        self._sites = Sites()
        self._key: Key = ()
        self._with_graph = False
        self._shapes: dict[str, tuple[int, int, int, int]] = {}
        """Of what the last forward gave."""
        self._called = set[str]()
        """The layers that called attention in it, those without the wanted block among them."""
        self._texts = TextLengths()
        self._survey: Survey | None = None
        self._doors, self._failed = dict[str, None](), False
        """The methods by which forwards have begun; whether the last one ended in an error."""
        self._depth = [0, 0]
        self._fresh = False
        """A forward has begun by another method than calling the model, and nothing was recorded yet."""
        self._biases = Biases()
        self._set = ExitStack()
        self._nesting, self._slow = Nesting(self._core, self._set), SlowPaths(self, self._core, self._set)
        self._sleepers, self._holders = Sleepers(self._core, self, self._set), Holders(self, self._set)
        self._products = Products(self, self._set)
        self._structure = Structure(self._core)
        self._reported = False

    def open(self) -> None:
        """Set recorders at the layers that are known already."""
        if self._ours:
            for name, module in self.selection.of_ours(discovery.own_layers(self.model)).items():
                self._record(name, module)
            return
        self.selection.check_settings(self.model)
        for sites in knowledge.all_known(self._core, self._structure.look()):
            self._instrument(sites)

    def close(self) -> None:
        """Leave the model as it was, and no circle of references: captures are freed with their last user."""
        self.stop()
        self._set.close()
        for each in (*self.recorders.values(), self._products, self._slow, self._sleepers, self._holders):
            each.close()

    def _instrument(self, sites: Sites) -> None:
        before = list(self.recorders.values())
        self._chosen.update(self.selection.chosen(sites))
        for name, site in sites.items():
            module = site.module()
            known = self.recorders.get(name)
            if name in self._chosen and module is not None and (known is None or known.module is not module):
                self._record(name, module)
            if name in self._chosen and self.selection.projections:
                self._holders.look((*site.holders, *site.asleep))
                self._products.look(site.passing)
        changed = list(self.recorders.values()) != before
        if changed:
            self._slow.look({each.module for each in self.recorders.values()})
        if changed or not self._structure.places:
            self._structure.add(sites)
        self._nesting.look(self.recorders.values(), sites, sites.idle)
        self._sleepers.look(sites.idle)

    def _record(self, name: str, module: nn.Module) -> None:
        recorder = self.recorders[name] = Recorder(name, module, self)
        self._set.enter_context(self.at(module, recorder))

    @contextmanager
    def forward(self, door: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Generator[list[Any]]:
        """A call of the model, or of one of its methods; within a call of the model other calls are part of it."""
        self.check_thread(changes=not self.keeps_teacher and not any(self._depth))
        outputs, main, unseen = list[Any](), not door, self.unseen
        if self._depth[0] or (self._depth[1] and not main) or self._is_students():
            yield outputs
            self.unseen = unseen
            return
        self._depth[not main] += 1
        self._doors[door or "forward"], self._failed = None, False
        try:
            self._begin(door, args, kwargs)
            yield outputs
            self.unseen = False
            if self._survey is not None:
                self._survey.result(outputs[0])
            self._end(main)
        except BaseException:
            self._forget()
            self._failed = True
            raise
        finally:
            self.stop()
            self._depth[not main] -= 1

    def _is_students(self) -> bool:
        """Whether the forward that begins belongs to a capture inside of this one, which has the teacher's."""
        has_teacher = self.keeps_teacher and bool(self._shapes) and not self._with_graph and torch.is_grad_enabled()
        return has_teacher and any(watched_later(module, self) for module in discovery.cores(self.model))

    def _begin(self, door: str, args: Any, kwargs: dict[str, Any]) -> None:
        self.stop()
        self._fresh = True
        self._biases.clear()
        self._sleepers.begin()
        self._holders.leave()
        for recorder in self.recorders.values():
            recorder.begin()
        self._with_graph = torch.is_grad_enabled()
        names = places_of((self._core, *discovery.cores(self.model)), door or "forward")
        self._texts.begin(names, args, kwargs)
        if not door:
            self._forget()
        if not self._ours:
            given = {**dict(zip(names, args)), **kwargs}
            self._key = knowledge.key_of(self._core, door, given, self._core.training, self._structure.look())
            sites = knowledge.known(self._core, self._key)
            if sites is None:
                self._survey = Survey(self.model, type(self.model).__name__)
                self._survey.start(names, args, kwargs)
                return
            self.selection.check(sites)
            self._sites = sites
            self._instrument(sites)
            sites.check_writes(self._chosen)
            self._products.begin()
            self._holders.begin()
        self.armed = True

    def _end(self, main: bool) -> None:
        self.armed = False
        survey = self._survey
        self.stop()
        if survey is not None and (survey.calls or main):
            self._learn(survey)
        late = any(each.ran is not None for each in self.recorders.values())
        self.flush()
        self._found = {name: unchanged(name, capture) for name, capture in self._found.items()}
        self._holders.end(self._found, self._sites, self.sink is not None)
        if self._sites and (late or self._sites.nested):
            others = knowledge.all_known(self._core, self._structure.number)
            self._found = self._sites.ordered(self._found, others)
            self._shapes = self._sites.ordered(self._shapes, others)
        self._biases.clear()
        self._sleepers.end(self._sites, self._called)
        if main and not self._shapes:
            raise UserError(f"capture: {type(self.model).__name__}: {self.selection.why_nothing(self._sites, survey)}")
        if self._shapes and not self._reported:
            self._reported = True
            self.report().log()

    def stop(self) -> None:
        """Leave nothing behind of a forward, also of one that was interrupted."""
        self.armed = False
        if self._survey is not None:
            self._survey.stop()
            self._survey = None

    def _learn(self, survey: Survey) -> None:
        """Keep what the first forward has shown, and make its captures."""
        self._sites = knowledge.learn(survey)
        if self._sites:
            knowledge.remember(self._core, self._key, self._sites, survey.ran)
        self.selection.check(self._sites, survey.ran)
        self._instrument(self._sites)
        for calls in knowledge.runs(survey):
            recorder = self.recorders.get(calls[0].name)
            if recorder is not None:
                if recorder.name in self._sites.rewritten:
                    raise written_to(recorder.name)
                self.check_graph(recorder, calls[0].graph)
                recorder.ran = (tuple(call.raw for call in calls), calls[0].tokens, None)
                self.flush(recorder)

    def flush(self, recorder: Recorder | None = None) -> None:
        """Make Captures of what an instrumented module, or every one, did."""
        for each in [recorder] if recorder is not None else list(self.recorders.values()):
            if self.armed and self._waits(each):
                continue
            for calls, tokens in each.runs():
                with self._holders.while_asking():
                    for name, capture in self._captures(each, calls, tokens):
                        self.deliver(name, noted(capture))

    def _waits(self, recorder: Recorder) -> bool:
        """Whether a module's projection is at hand only while it runs, and has not run yet."""
        site = self._site(recorder)
        return site is not None and self.selection.projections and any(each.waits for each in site.passing)

    def deliver(self, name: str, capture: Capture) -> None:
        """Keep a Capture, or hand it on."""
        if self._fresh:
            self._forget()
        self._shapes[name] = capture.shape
        take = self._found.__setitem__ if self.sink is None else self.sink
        take(name, self.selection.reduced(capture))

    def _forget(self) -> None:
        """Leave the captures of the forward before."""
        self.unseen = self._fresh = False
        self._found, self._shapes = {}, {}
        self._called = {name for name, each in self.recorders.items() if each.count}

    def check_graph(self, recorder: Recorder, graph: bool) -> None:
        """Refuse a layer whose captures would train nothing; graph: whether it ran with one."""
        if self._with_graph and not graph and any(p.requires_grad for p in recorder.module.parameters()):
            raise discovery.without_graph(recorder.name)

    def _captures(self, recorder: Recorder, raw: Sequence[RawCall], tokens: Tokens) -> Iterator[tuple[str, Capture]]:
        site = self._site(recorder)
        if site is None or recorder.name not in self._chosen:
            return
        if not raw:
            raise UserError(f"capture: {recorder.name}: {discovery.why_silent(recorder.module)}")
        if any(map(inputs_written, raw)):
            raise written_to(recorder.name)
        gone = any(map(result_written, raw))
        try:
            calls = joined([Call.of(each, tokens) for each in raw], tokens)
        except ValueError as error:
            raise UserError(f"capture: {recorder.name}: {error}") from error
        for j, call in enumerate(calls):
            i, n = recorder.count, call.query.shape[2]
            layout = self._sites.layout(site, i, kind_of(call, j, tokens), n == call.key.shape[2])
            recorder.count += 1
            self._called.add(recorder.name)
            text = self._texts.of(recorder.name, n, layout, tokens, self._sites.shapes)
            if not self.selection.wants(layout):
                continue
            name = recorder.name + numbered(i)
            try:
                call = replace(call, mixed=None) if gone or layout.overwritten else call
                for suffix, capture in sections(call, self._biases.of(call.mask), layout, text, self.selection.block):
                    yield name + suffix, self._holders.noted(name + suffix, capture, site, layout.projections)
            except UserError as error:
                raise UserError(f"capture: {name}: {error}") from error

    def _site(self, recorder: Recorder) -> Site | None:
        """What is known of a recorder's module, by this forward or another one."""
        kinds = [self._sites, *knowledge.all_known(self._core, self._structure.number)]
        return next((sites[recorder.name] for sites in kinds if recorder.name in sites), None)

    @property
    def skipped(self) -> list[str]:
        """Wanted layers that did not run in the last forward, where others of their kind did."""
        idle = self._sites.idle if self.selection.layers is None else ()
        return [n for n in (*(n for n in self._sites if n in self._chosen), *idle) if n not in self._called]

    @property
    def by_hand(self) -> Mapping[str, str]:
        """Layers among the wanted ones that ran and did nothing that can be recorded, and why that may be."""
        return self._sites.unread() if self.selection.layers is None else {}

    @property
    def why_empty(self) -> str:
        """Why there are no captures, and what to do."""
        return why_empty(self.name, list(self._doors), self.sink is not None, self._failed)

    def report(self) -> Report:
        """What was recorded in the last forward, and what of its attention was left out, with the reason."""
        self.catch_up()
        return Report.of(self._sites, self._shapes, self.selection)
