"""Prefetching: a thread makes the next item while the current one is used."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
T = TypeVar("T")


def prefetch(make: Callable[[A], T], arguments: Iterable[A]) -> Iterator[T]:
    """Yield make(a) for every argument, in order; a thread makes the next one while one is used.

    An exception of `make` is raised where its result would have been yielded.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting: Future[T] | None = None
        for argument in arguments:
            done, waiting = waiting, pool.submit(make, argument)
            if done is not None:
                yield done.result()
        if waiting is not None:
            yield waiting.result()
