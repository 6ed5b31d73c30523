"""What a model is for a while: in evaluation, and one thread's alone."""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

_turns: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_turns_lock = threading.Lock()


@contextmanager
def evaluated(model: nn.Module) -> Generator[None]:
    """The model in evaluation; parts that were in another mode than the whole are so again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:  # from the outside in
            if module.training != training:
                module.train(training)  # which some adapters take their weights apart by


@contextmanager
def in_turn(model: nn.Module) -> Generator[None]:
    """One thread at a time: what is set on a model for a while must not be another thread's to take back."""
    with _turns_lock:
        turn = _turns.setdefault(model, threading.RLock())
    with turn:
        yield
