"""Augmented inputs of many images, made in several processes: decoding and augmentation take the most of a CPU's time.

What comes out is the same for any number of processes, since every draw is a function of seed, step and position.
"""

import multiprocessing
import os
import signal
import weakref
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain
from multiprocessing.connection import wait
from threading import Thread

import numpy as np
import torch
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.core.signals import SIGNALS
from dit_shd.data.augmentation import TrainTransform
from dit_shd.data.datasets import Dataset

Item = tuple[int, int, int]
"""Index of an image in its dataset, step and position in the step's batch."""


class Augmenter:
    """Makes inputs of images of one dataset.

    Args:
        dataset: With `images` among its fields; every worker gets a copy.
        transform: The transform of the run.
        workers: Processes beside this one; 0: this one does it.
    """

    def __init__(self, dataset: Dataset, transform: TrainTransform, workers: int = 0) -> None:
        self.dataset, self.transform, self.workers = dataset, transform, workers
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self, items: Sequence[Item]) -> Tensor:
        """The inputs [b,c,y,x] of some images.

        Raises:
            UserError: An image cannot be read, or a worker was ended.
        """
        if not self.workers:
            return torch.from_numpy(_augmented(self.dataset, self.transform, items))
        parts = [list(items[i :: self.workers]) for i in range(min(self.workers, len(items)))]
        try:
            with _signals_held():
                pool = self._started()
            with _signals_held():  # again: the first queues of a process begin a helper of Python's, which lets go
                results = pool.map(_work, parts)
            arrays = list(results)
        except BrokenProcessPool as error:
            raise UserError(
                "task.workers: a worker process was ended, for want of memory perhaps; the same command with fewer "
                "workers goes on from the last checkpoint"
            ) from error
        order = np.argsort([*chain(*(range(len(items))[i :: self.workers] for i in range(len(parts))))])
        return torch.from_numpy(np.concatenate(arrays)[order])

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # a forked child would inherit threads and GPUs
            self._pool = ProcessPoolExecutor(
                self.workers, context, initializer=_begin, initargs=(self.dataset, self.transform)
            )
            weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        return self._pool


@contextmanager
def _signals_held() -> Generator[None]:
    """Signals wait while the block runs; processes that begin in it hold theirs from the first moment on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_OF_WORKER: list[tuple[Dataset, TrainTransform]] = []
"""In a worker: what it works with."""


def _begin(dataset: Dataset, transform: TrainTransform) -> None:
    """In a worker: it leaves signals to the process that it works for, and ends with it or by it."""
    for number in SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=_end_by_parent, daemon=True).start()
    else:  # macOS does not say whose a signal is
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    Thread(target=_end_with_parent, daemon=True).start()
    _OF_WORKER.append((dataset, transform))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _end_by_parent() -> None:
    """At a SIGTERM of the pool's; one for all processes of a job comes from elsewhere, and the run is saved first."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(1)


def _work(items: Sequence[Item]) -> np.ndarray:
    return _augmented(*_OF_WORKER[0], items)


def _augmented(dataset: Dataset, transform: TrainTransform, items: Sequence[Item]) -> np.ndarray:
    """Inputs float32 [b,c,y,x]."""
    return np.stack([transform(dataset.image(index), step, position).numpy() for index, step, position in items])
