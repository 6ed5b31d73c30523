"""The first forward of a model: which modules run when scaled_dot_product_attention is called.

Nothing is known of the model beforehand, no names and no source: hooks keep a stack of the modules that are running,
and a function mode notes each call of attention with the module on top. What is seen holds for later forwards, which
then need no more than the modules that were found.
"""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from dit_shd.attention.recording import discovery
from dit_shd.attention.recording.arrivals import Arrivals, Entered
from dit_shd.attention.recording.eager import EAGER, EagerBackward, is_compiled
from dit_shd.attention.recording.heads import heads_beside_windows, windows_as_samples
from dit_shd.attention.recording.instrument import plain_class
from dit_shd.attention.recording.lineage import ENTERED, Lineage, Lineages, Streams
from dit_shd.attention.recording.products import is_product
from dit_shd.attention.recording.roles import Given
from dit_shd.attention.recording.sdpa_calls import (
    ATTENTION,
    Call,
    MultiHead,
    RawCall,
    heads_and_dropout,
    inputs_written,
    multi_head_attention,
    raw_call,
    result_written,
)
from dit_shd.attention.recording.tokens import (
    Tokens,
    features_of,
    is_sequence,
    shapes_of,
    tensors_in,
    token_places,
    tokens_of,
)
from dit_shd.attention.recording.unit_response import is_asking
from dit_shd.attention.recording.writes import contents_of, rewritten

_SOFTMAX = {torch.softmax, Tensor.softmax, F.softmax, torch.special.softmax}


@dataclass(eq=False)
class Running:
    """A module that is running, and what it was given."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    run: int
    """The number of this run among all of all modules."""
    entered: Entered | None = None
    """What it was given of attention results."""
    products: int = 0
    """How many functions that multiply have run in it."""


@dataclass(frozen=True, eq=False)
class SeenCall:
    """One call of attention."""

    name: str
    """Of the innermost module that was running."""
    module: nn.Module
    run: int
    raw: RawCall
    tokens: Tokens
    graph: bool
    """Whether gradients were on."""
    query: Lineage | None
    key: Lineage | None
    given: tuple[Given, ...]
    """The sequences that the module was given."""
    beside: bool
    """Whether the module was given the very tensor that the module of the call before was."""
    contents: tuple[Tensor | None, ...]
    """Of query, key, value, mask and result, where PyTorch counts no writes to them."""

    @property
    def inputs_written(self) -> bool:
        """Whether its query, key, value or mask have been written to since."""
        return inputs_written(self.raw) or rewritten(self.contents[:4], Call.given(self.raw))

    @property
    def result_written(self) -> bool:
        """Whether what it gave has been written to since."""
        return result_written(self.raw) or rewritten(self.contents[4:], [self.raw[2]])


class Survey(TorchFunctionMode):
    """Inside it, one eager forward of `root` is seen.

    Args:
        name: Of the root, for attention that is done in its own forward.
    """

    def __init__(self, root: nn.Module, name: str):
        super().__init__()
        self.calls: list[SeenCall] = []
        self.ran: dict[str, nn.Module] = {}
        """Every module that ran, by name."""
        self.softmaxes = set[str]()
        """Those with weights in which a softmax of maps ran, attention's own aside."""
        self.arrivals = Arrivals(root)
        self.lineages = Lineages()
        self.inputs: tuple[Given, ...] = ()
        """The sequences that the model was given."""
        self.shapes: tuple[tuple[int, ...], ...] = ()
        """Of all tensors that it was given."""
        self.image: Streams = frozenset()
        """The inputs that are the image's, once that is known."""
        self.outputs: list[Lineage] = []
        """Of what the model gave."""
        self._backward = EagerBackward()
        self.failure = ""
        """What went wrong while looking; the model goes on."""
        self.names = {module: discovery.plain(path) or name for path, module in root.named_modules()}
        self._root = Running(root, (), {}, 0)
        self._stack: list[Running] = []
        self._runs = 0
        self._given_last: ref[Tensor] | None = None
        """The features that the module of the last call was given."""
        self._open = ExitStack()
        self._looks = False
        """Whether what runs is done to look, not by the model."""

    def start(self, names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin to record; `names` are those of the arguments that the model is given by position."""
        self.shapes = shapes_of((args, kwargs))
        given = {**dict(zip(names, args)), **kwargs}
        for name, value in given.items():
            self.lineages.name(value, name)
        self.inputs = self._given(given)
        for module in self.names:
            if not isinstance(module, torch.jit.ScriptModule):
                for hook in (
                    module.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True),
                    module.register_forward_pre_hook(self._prepared, with_kwargs=True),
                    module.register_forward_hook(self._leave, always_call=True),
                ):
                    self._open.callback(hook.remove)
        self._open.enter_context(EAGER)
        self._open.enter_context(self)

    def stop(self) -> None:
        """Leave the model as it was."""
        self._open.close()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_asking():
            return
        self._runs += 1
        self._stack.append(Running(module, args, kwargs, self._runs))
        self.ran.setdefault(self.names[module], module)
        with self._harmless():
            for i, value in enumerate((*args, *kwargs.values())):
                self.lineages.name(value, f"input {i} of {self.names[module]}", ENTERED)
            self._stack[-1].entered = self.arrivals.enter(module, args, kwargs)

    def _prepared(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Others' hooks have run, which may have changed what the module is given."""
        if self._stack and self._stack[-1].module is module and not is_asking():
            self._stack[-1].args, self._stack[-1].kwargs = args, kwargs

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if is_asking() or not self._stack or self._stack[-1].module is not module:
            return
        running = self._stack.pop()
        with self._harmless():
            if output is not None:
                self.lineages.inherit(output, next(iter((*running.args, *running.kwargs.values())), None))
            if running.entered is not None:
                self.arrivals.leave(running.entered, output)
            if is_compiled(module) and torch.is_grad_enabled():
                self._backward.begin_with(tensors_in(output))

    def result(self, output: Any) -> None:
        """What the model gave."""
        with self._harmless():
            self.outputs = self.lineages.all(output)
            if torch.is_grad_enabled():  # functions may be compiled, too, which no module tells
                read = (x for call in self.calls for x in Call.given(call.raw)[:3])
                self._backward.begin_with([*tensors_in(output), *read])

    def _given(self, given: dict[str, Any]) -> tuple[Given, ...]:
        sequences = {name: x for name, x in given.items() if is_sequence(x)}
        known = {name: self.lineages.of(x) for name, x in sequences.items()}
        ordered = sorted(sequences.items(), key=lambda item: -item[1].ndim)  # features before numbers
        return tuple(Given(name, x.shape[1], each.streams) for name, x in ordered if (each := known[name]))

    @contextmanager
    def _harmless(self) -> Generator[None]:
        """Nothing that fails while looking is to fail the model, nor is what looking calls the model's doing."""
        looked, self._looks = self._looks, True
        try:
            yield
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
        finally:
            self._looks = looked

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            how = heads_and_dropout(args, kwargs)
            with ExitStack() as inside:
                for mode in _get_current_function_mode_stack():  # captures around this one, which look, too
                    if isinstance(mode, Survey):
                        inside.enter_context(_InsideMultiHead(mode, *how, sees=True))
                inside.enter_context(_InsideMultiHead(self, *how, sees=False))
                return multi_head_attention(*args, **kwargs)
        result = func(*args, **kwargs)
        self.see(func, args, kwargs, result)
        if func in ATTENTION:
            self.attention(raw_call(args, kwargs, result))
        return result

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """A function ran."""
        if self._looks or is_asking():
            return
        with self._harmless():
            self.lineages.follow(func, args, kwargs, result)
            running = self._stack[-1] if self._stack else self._root
            self.arrivals.follow(func, args, result, running.module)
            if func in _SOFTMAX and isinstance(result, Tensor) and result.ndim > 2:
                self.softmaxes |= {
                    self.names[each.module] for each in self._stack if any(True for _ in each.module.parameters())
                }
            if is_product(func):
                self.arrivals.product(func, args, kwargs, result, running.module, running.products)
                for each in self._stack or [self._root]:
                    each.products += 1

    def attention(self, raw: RawCall) -> None:
        """It was attention."""
        running = self._owner()
        places = token_places(plain_class(running.module).forward)
        tokens = tokens_of(places, running.args, running.kwargs)
        query, key, *more = Call.given(raw)
        first = features_of((*running.args, *running.kwargs.values()))
        beside = self._given_last is not None and self._given_last() is first
        self._given_last = None if first is None else ref(first)
        contents: tuple[Tensor | None, ...] = ()
        with self._harmless():
            contents = contents_of(query, key, *more, raw[2])
        with self._harmless():
            in_windows = raw[2].ndim == 5
            mixed = windows_as_samples(raw[2], heads_beside_windows(query, key, tokens)) if in_windows else raw[2]
            self.arrivals.attention(raw[2], mixed)
        self.calls.append(
            SeenCall(
                self.names[running.module],
                running.module,
                running.run,
                raw,
                tokens,
                torch.is_grad_enabled(),
                self.lineages.of(query),
                self.lineages.of(key),
                self._given({**dict(zip(places, running.args)), **running.kwargs}),
                beside and first is not None,
                contents,
            )
        )

    def _owner(self) -> Running:
        """The innermost module that is running; a processor that is a module counts as its attention module."""
        if not self._stack:
            return self._root
        processor = len(self._stack) > 1 and vars(self._stack[-2].module)["_modules"].get("processor")
        return self._stack[-2] if processor is self._stack[-1].module else self._stack[-1]


class _InsideMultiHead(MultiHead):
    """Hands on what happens inside of F.multi_head_attention_forward.

    Args:
        survey: Takes it.
        heads: h.
        dropout: Of the maps.
        sees: Whether the survey sees every function itself, and is to be told of attention by products alone.
    """

    def __init__(self, survey: Survey, heads: int, dropout: float, sees: bool):
        super().__init__([], heads, dropout)
        self.survey, self.sees = survey, sees

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self.sees:
            self.survey.see(func, args, kwargs, result)
        raw = None if self.sees and func in ATTENTION else self.note(func, args, kwargs, result)
        if raw is not None:
            self.survey.attention(raw)
        return result
