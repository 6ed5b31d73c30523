"""How somebody else's modules are instrumented while a model is recorded: by a class of their own class, for a while.

An attention module's forward notes its calls of scaled_dot_product_attention for the module's recorders; the model's
own methods say when a forward begins and ends. A copy or a pickle of an instrumented module is a plain one.
"""

import copyreg
import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import FunctionType
from typing import Any, Protocol, cast

import torch
from torch import nn

from dit_shd.attention.recording.sdpa_calls import Given, RawCall, SDPATap, See
from dit_shd.attention.recording.tokens import Tokens, token_places, tokens_of

RECORDERS, WATCHERS = "_dit_shd_recorders", "_dit_shd_watchers"
"""The attributes of an instrumented module that hold its recorders, and what watches its forwards."""
_UNASKED = Tokens()
_SLOW = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}
"""Settings of PyTorch's modules without which they leave their eval fast path, which hides attention."""


class CallRecorder(Protocol):
    """Takes what one run of a module did."""

    eager: bool
    """Whether its module is to run outside of compiled programs."""
    wants_calls: bool
    """Whether it is to be told of what its module calls, not of its having run alone."""

    @property
    def armed(self) -> bool:
        """Whether a forward that is recorded is under way."""
        ...

    def see(self) -> See | None:
        """What takes every function of one run, if that is wanted."""
        ...

    def record(self, calls: list[RawCall], tokens: Tokens, given: Given) -> None:
        """Take the calls of one run, and what it was given."""
        ...


class Watcher(Protocol):
    """Takes the beginning and the end of a model's forwards."""

    unseen: bool
    """Set where a compiled program runs the model; a forward that is watched takes it back as it ends."""

    def forward(self, door: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AbstractContextManager[list[Any]]:
        """A context for the length of a call of the model by a method; the list in it takes the result."""
        ...


def recorded(module: nn.Module, recorder: CallRecorder) -> ExitStack:
    """Let `recorder` take what a module does, until what is returned is closed."""
    return _attached(module, RECORDERS, recorder)


def watched(module: nn.Module, watcher: Watcher) -> ExitStack:
    """Let `watcher` take when a model is called, by whatever method, until what is returned is closed."""
    return _attached(module, WATCHERS, watcher)


def watched_later(module: nn.Module, watcher: Watcher) -> bool:
    """Whether others came to watch a model after this one."""
    watchers: tuple[Watcher, ...] = vars(module).get(WATCHERS, ())
    return watcher in watchers and watchers[-1] is not watcher


def plain_class(recorded: object) -> type[Any]:
    """The class of a module, or of its processor, without ours."""
    return vars(type(recorded)).get("_dit_shd_plain", type(recorded))


def set_again(module: nn.Module) -> None:
    """Give a recorded module the class that goes with its recorders, one of which has become eager, or is no more."""
    _set(module, RECORDERS, vars(module)[RECORDERS])


def places_of(modules: Iterable[nn.Module], method: str) -> tuple[str, ...]:
    """The names of what a method takes, of the first of some modules that has it: a wrapper has methods of its own."""
    classes = map(plain_class, modules)
    return token_places(next(getattr(cls, method) for cls in classes if hasattr(cls, method)))


def _attached(module: nn.Module, kind: str, item: object) -> ExitStack:
    """No generator, which Python would end by itself when it exits."""
    _set(module, kind, (*vars(module).get(kind, ()), item))
    stack = ExitStack()
    stack.callback(lambda: _set(module, kind, tuple(each for each in vars(module)[kind] if each is not item)))
    return stack


def _set(module: nn.Module, kind: str, items: tuple[object, ...]) -> None:
    """Give a module its recorders or watchers, and the class that goes with what it has."""
    plain = plain_class(module)
    vars(module)[kind] = items
    if not items:
        del vars(module)[kind]
    cls: type[nn.Module] = plain
    eager = any(each.eager for each in vars(module).get(RECORDERS, ()))
    if RECORDERS in vars(module):
        cls = _recorded_class(plain, eager)
    if WATCHERS in vars(module):
        cls = _watched_class(cls, plain)
    if type(module) is not cls:
        object.__setattr__(module, "__class__", cls)
    forward = vars(module).get("forward")  # one set on the instance, as accelerate does, hides the class's
    if isinstance(forward, _InstanceForward) and (forward.eager != eager or RECORDERS not in vars(module)):
        forward = vars(module)["forward"] = forward.function
    if RECORDERS in vars(module) and forward is not None and not isinstance(forward, _InstanceForward):
        vars(module)["forward"] = _InstanceForward(module, forward, eager)


class _InstanceForward:
    """A forward that was set on an instance, recorded."""

    def __init__(self, module: nn.Module, function: Callable[..., Any], eager: bool):
        self.module, self.function, self.eager = module, function, eager
        self.places = token_places(plain_class(module).forward)
        self.run: Callable[..., Any] = torch.compiler.disable(_run_recorded) if eager else _run_recorded
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self.module, self.function, self.places, args, kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _same, (self.function,)


def _same(x: Any) -> Any:
    return x


@functools.cache
def _recorded_class(plain: type[nn.Module], eager: bool) -> type[nn.Module]:
    """A class with a forward that hands its calls to the module's recorders, and is never compiled if that is `eager`.

    One class for all modules of a kind, so that torch.compile sees the same code everywhere. Who wraps a forward keeps
    it, also when the module has its plain class again, and when what it was wrapped in is recorded (_InstanceForward).
    """
    base: Any = plain
    run, places = plain.forward, token_places(plain.forward)

    class Recorded(base):
        @functools.wraps(plain.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            if isinstance(self.__dict__.get("forward"), _InstanceForward):
                return run(self, *args, **kwargs)
            return _run_recorded(self, functools.partial(run, self), places, args, kwargs)

        def __reduce_ex__(self, protocol: Any) -> Any:
            return _plain_reduced(super().__reduce_ex__(protocol), plain)

    for kind, (name, slow) in _SLOW.items():
        if issubclass(plain, kind):
            setattr(Recorded, name, _while_armed(name, slow))
    if eager:
        setattr(Recorded, "forward", torch.compiler.disable(Recorded.forward))  # noqa: B010 (typed as a method)
    return _named(Recorded, plain)


def _while_armed(name: str, value: Any) -> property:
    """An attribute that has another value while its module is recorded; torch.compile sees that, and it is kept."""

    def get(module: nn.Module) -> Any:
        armed = any(each.armed for each in getattr(module, RECORDERS, ()))
        return value if armed else module.__dict__.get(name, value)

    return property(get, lambda module, new: module.__dict__.update({name: new}))


def seeing(recorders: Sequence[CallRecorder]) -> See | None:
    """What takes every function of one run for some recorders, if any of them wants that."""
    wanted = [each.see() for each in recorders]
    wanted = [each for each in wanted if each is not None]
    if not wanted:
        return None

    def all_see(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for each in wanted:
            each(function, args, kwargs)

    return all_see


def _run_recorded(
    module: nn.Module, function: Callable[..., Any], places: tuple[str, ...], args: tuple[Any, ...], kwargs: Any
) -> Any:
    """Run a module's forward, whose arguments by position have these names, and hand its calls to its recorders."""
    recorders = [each for each in getattr(module, RECORDERS, ()) if each.armed]
    if not recorders:
        return function(*args, **kwargs)
    calls: list[RawCall] = []
    if not [each for each in recorders if each.wants_calls]:
        result, tokens = function(*args, **kwargs), _UNASKED
    else:
        with SDPATap(calls, seeing(recorders)):
            result = function(*args, **kwargs)
        tokens = tokens_of(places, args, kwargs)
    for recorder in recorders:
        recorder.record(calls, tokens, (args, kwargs))
    return result


@functools.cache
def _watched_class(cls: type[nn.Module], plain: type[nn.Module]) -> type[nn.Module]:
    """`cls` whose methods say when they are called; `forward` and calling the model count as one and the same."""
    base: Any = cls

    class Watched(base):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return _run_watched(self, "", super().__call__, args, kwargs)

        def __reduce_ex__(self, protocol: Any) -> Any:
            return _plain_reduced(super().__reduce_ex__(protocol), plain)

    for name in dir(cls):
        method = inspect.getattr_static(cls, name)
        is_door = name == "forward" or not (name.startswith("_") or hasattr(nn.Module, name))
        if is_door and isinstance(method, FunctionType):
            setattr(Watched, name, _door("" if name == "forward" else name, method))
    return _named(Watched, plain)


def _door(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return _run_traced(self, functools.partial(method, self), args, kwargs)
        return _run_watched(self, name, functools.partial(method, self), args, kwargs)

    return run


def _run_watched(module: nn.Module, door: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
    if torch.compiler.is_compiling():
        return _run_traced(module, function, args, kwargs)
    with ExitStack() as stack:
        watchers = cast("tuple[Watcher, ...]", vars(module).get(WATCHERS, ()))
        results = [stack.enter_context(watcher.forward(door, args, kwargs)) for watcher in watchers]
        output = function(*args, **kwargs)
        for result in results:
            result.append(output)
        return output


def _run_traced(module: nn.Module, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
    for watcher in getattr(module, WATCHERS, ()):
        watcher.unseen = True
    return function(*args, **kwargs)


def _plain_reduced(reduced: Any, plain: type) -> Any:
    """What pickle and copy are given of an instrumented module: a plain one, made without a function of ours."""
    if not isinstance(reduced, tuple):
        return reduced
    function, arguments, *rest = cast("tuple[Any, ...]", reduced)
    arguments = tuple(plain if isinstance(each, type) and issubclass(each, plain) else each for each in arguments)
    if function is vars(copyreg)["__newobj__"]:  # pickle refuses it for another class than the object's
        function, arguments = vars(copyreg)["_reconstructor"], (plain, object, None)
    if rest and isinstance(rest[0], dict):
        state = cast("dict[str, Any]", rest[0])
        rest[0] = {key: value for key, value in state.items() if key not in (RECORDERS, WATCHERS)}
    return function, arguments, *rest


def _named(new: type, plain: type) -> type:
    new.__name__, new.__qualname__ = plain.__name__, plain.__qualname__
    new.__module__, new.__doc__ = plain.__module__, plain.__doc__
    new._dit_shd_plain = plain  # type: ignore[attr-defined]
    if hasattr(plain, "__deepcopy__"):  # as those of parametrised modules, which copy the class and all attributes
        new.__deepcopy__ = functools.partialmethod(_plain_copy, plain)  # type: ignore[attr-defined]
    return new


def _plain_copy(module: nn.Module, plain: Any, memo: dict[int, Any]) -> nn.Module:
    copied = plain.__deepcopy__(module, memo)
    for key in (RECORDERS, WATCHERS):
        vars(copied).pop(key, None)
    object.__setattr__(copied, "__class__", plain)
    return copied
