"""Forwards that are looked at run eagerly, and so does what their backward computes again (gradient checkpointing)."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable


class _Eager(AbstractContextManager[None]):
    """Inside it nothing is compiled, in the whole process; surveys of several threads may overlap."""

    def __init__(self) -> None:
        self._lock, self._inside = RLock(), 0
        self._stance = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._stance.callback(torch.compiler.set_stance("force_eager").__exit__, None, None, None)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._stance.close()


EAGER = _Eager()


class EagerBackward:
    """Makes the backward of what an eager forward has made eager, too: it has to save what that forward has saved.

    It begins at the hook of a tensor, and ends with the backward. A backward that fails does not tell; then the tensors
    do, which are all that keeps this, as they go.
    """

    __torch_unserializable__ = True

    def __init__(self) -> None:
        self._inside = False

    def __call__(self, gradient: Tensor) -> None:
        if not self._inside:
            self._inside = True
            EAGER.__enter__()
            engine: Any = vars(Variable)["_execution_engine"]
            engine.queue_callback(self._end)

    def _end(self) -> None:
        if self._inside:
            self._inside = False
            EAGER.__exit__()

    __del__ = _end

    def begin_with(self, made: Iterable[Tensor]) -> None:
        """Begin where a backward comes to one of these."""
        for each in made:
            if each.grad_fn is not None:
                each.register_hook(self)


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of a module are compiled, by torch.compile or its own compile()."""
    return "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None
