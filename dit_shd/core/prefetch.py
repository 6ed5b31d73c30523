"""Working ahead: the next thing is made by a thread while the last one is used."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
T = TypeVar("T")


def prefetch(make: Callable[[A], T], arguments: Iterable[A]) -> Iterator[T]:
    """make(a) for every argument, in order; the next one is in the making while one is used.

    What `make` raises is raised where its result would have come.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting: Future[T] | None = None
        for argument in arguments:
            done, waiting = waiting, pool.submit(make, argument)
            if done is not None:
                yield done.result()
        if waiting is not None:
            yield waiting.result()
