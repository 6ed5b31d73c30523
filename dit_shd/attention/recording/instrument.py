"""How somebody else's attention module is instrumented: as a module, or by an attention processor of diffusers."""

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from dit_shd.attention.recording.joint import Tokens
from dit_shd.attention.recording.sdpa_calls import RawCall, SDPATap

RECORDER = "_dit_shd_recorder"
"""The attribute of an instrumented module that holds its Recorder."""


@functools.cache
def instrumented(cls: type[Any]) -> type:
    """`cls` with a forward that tells the module's Recorder; one class for all modules of a kind, so that
    torch.compile sees the same code everywhere."""
    places = _places(cls.forward)

    class Instrumented(cls):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            recorder = getattr(self, RECORDER)
            if not recorder.armed:
                return super().forward(*args, **kwargs)
            calls: list[RawCall] = []
            with SDPATap(calls):
                result = super().forward(*args, **kwargs)
            recorder.record(calls, _tokens(places, args, kwargs))
            return result

    return _named(Instrumented, cls, cls.__name__)


class SHDAttnProcessor:
    """A processor of diffusers that does what the module's own does, and tells a Recorder; see attach_processors."""

    recorder: Any


def processor_of(own: Any, recorder: Any) -> Any:
    """The module's own processor, as an SHDAttnProcessor with the same state and the same signature."""
    new = copy.copy(own)
    object.__setattr__(new, "__class__", _recording(type(own)))
    object.__setattr__(new, "recorder", recorder)
    return new


@functools.cache
def _recording(cls: type[Any]) -> type:
    own: Callable[..., Any] = cls.__call__
    places = _places(own, skip=2)  # self and the module

    class Recording(SHDAttnProcessor, cls):
        @functools.wraps(own)  # Attention.forward drops the keywords that a processor's signature lacks
        def __call__(self, attn: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if not self.recorder.armed:
                return own(self, attn, *args, **kwargs)
            calls: list[RawCall] = []
            with SDPATap(calls):
                result = own(self, attn, *args, **kwargs)
            self.recorder.record(calls, _tokens(places, args, kwargs))
            return result

    return _named(Recording, cls, f"SHD{cls.__name__}")


def _named(new: type, cls: type, name: str) -> type:
    new.__name__, new.__qualname__, new.__module__, new.__doc__ = name, name, cls.__module__, cls.__doc__
    return new


def _places(function: Any, skip: int = 1) -> dict[str, int]:
    """The names and positions under which a function takes its tokens and, maybe, the text's."""
    names = list(inspect.signature(function).parameters)[skip:]
    text = [name for name in names if name.endswith("encoder_hidden_states")]
    return {name: names.index(name) for name in [*names[:1], *text[:1]]}


def _tokens(places: dict[str, int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tokens:
    given = [kwargs.get(name, args[at] if at < len(args) else None) for name, at in places.items()]
    hidden, text = [*given, None, None][:2]
    other = text is not None and text is not hidden
    return Tokens(_length(hidden), _length(text) if other else None, other)


def _length(tokens: Any) -> int | None:
    return tokens.shape[1] if isinstance(tokens, Tensor) and tokens.ndim == 3 else None
