"""Attention processors of diffusers that are recorded: the module's own stays at work inside; see attach_processors."""

import copy
import copyreg
import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from dit_shd.attention.recording.sdpa_calls import RawCall, SDPATap
from dit_shd.attention.recording.tokens import token_places, tokens_of


class SHDAttnProcessor:
    """A processor of diffusers that does what the module's own does, and lets a Recorder take its calls."""

    recorder: Any


def processor_of(original: Any, recorder: Any) -> Any:
    """The module's own processor, as an SHDAttnProcessor with the same state and the same signature."""
    new = copy.copy(original)
    object.__setattr__(new, "__class__", _recording(type(original)))
    object.__setattr__(new, "recorder", recorder)
    return new


@functools.cache
def _recording(cls: type) -> type:
    base: Any = cls
    call: Callable[..., Any] = cls.__call__
    places = token_places(call, 2)  # without self and the module

    class Recording(SHDAttnProcessor, base):
        @functools.wraps(call)  # Attention.forward drops the keywords that a processor's signature lacks
        def __call__(self, attn: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if not self.recorder.armed:
                return call(self, attn, *args, **kwargs)
            calls: list[RawCall] = []
            with SDPATap(calls):
                result = call(self, attn, *args, **kwargs)
            self.recorder.record(calls, tokens_of(places, args, kwargs), (args, kwargs))
            return result

        def __reduce_ex__(self, protocol: Any) -> Any:
            """A copy or a pickle is the module's own processor, made without a function of ours."""
            state = {key: value for key, value in vars(self).items() if key != "recorder"}
            return vars(copyreg)["_reconstructor"], (cls, object, None), state

    Recording._dit_shd_plain = cls  # type: ignore[attr-defined]
    Recording.__name__ = Recording.__qualname__ = f"SHD{cls.__name__}"
    Recording.__module__, Recording.__doc__ = cls.__module__, cls.__doc__
    return Recording
