"""The shapes of a large model's attention, by its calls on the meta device: no weight is made.

A call stands for a layer: of joint attention it has the rows of image and text together.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dit_shd.attention.capture import Capture, Captures


@contextmanager
def recorded_calls(model: nn.Module) -> Generator[Captures]:
    """Inside it the model's calls of scaled_dot_product_attention are captures of the modules that make them.

    Args:
        model: On the meta device; its maps have shapes alone, W^O is taken to be as wide as the heads together.
    """
    running: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: running.append(name)

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(lambda *_: _leave(running), always_call=True))
    mode = _Calls(running)
    try:
        with mode:
            yield mode.captures
    finally:
        for handle in handles:
            handle.remove()


def _leave(running: list[str]) -> None:
    running.pop()


class _Calls(TorchFunctionMode):
    def __init__(self, running: list[str]):
        super().__init__()
        self.running = running
        self.captures: dict[str, Capture] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # noqa: ANN401 what any function returns
        if func is F.scaled_dot_product_attention:
            self._record(*_inputs(args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _record(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        name = self.running[-1] if self.running else "attention"
        number = sum(known.partition("#")[0] == name for known in self.captures) + 1
        heads, width = query.shape[1], query.shape[-1]
        out = torch.empty(heads, width, heads * width, device=query.device)
        self.captures[name if number == 1 else f"{name}#{number}"] = Capture(query, key, value, scale=1.0, out=out)


def _inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    names = ("query", "key", "value")
    given = dict(zip(names, args[:3])) | {name: kwargs[name] for name in names if name in kwargs}
    return given["query"], given["key"], given["value"]
