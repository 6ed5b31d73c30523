"""Work of many small kernels that a GPU replays as one: CUDA graphs (torch.cuda.graph) of functions of tensors.

Where a layer is small, issuing a hundred kernels takes the host longer than the GPU; a graph is issued at once.
"""

import logging
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dit_shd.core.errors import error_line

_log = logging.getLogger("dit_shd")


@dataclass(frozen=True, eq=False)
class _Graph:
    """One function at one set of shapes, and where it reads and writes."""

    graph: Any
    inputs: list[Tensor]
    outputs: list[Tensor]


class CudaGraphs:
    """Graphs by key: a key's first call runs as it is (kernels compile, caches fill), its second is captured.

    The functions must be pure: everything that they read beside their arguments must stay where it is, as the key says.
    One that waits for the GPU (a number read on the host, a copy from it) is found at its second call and is not
    captured: a capture that fails would leave the allocator unable to free its cache for the rest of the process. All
    graphs share one pool of memory, so that they must be replayed one after another; results are copies.

    Args:
        most: Graphs that are kept.
        mib: Memory of a function's arguments up to which it is captured; larger ones keep a GPU busy by themselves.
    """

    def __init__(self, most: int = 64, mib: float = 256):
        self.most, self.mib = most, mib
        self._once: set[Hashable] = set()
        self._waiting: set[Hashable] = set()
        self._graphs: dict[Hashable, _Graph] = {}
        self._inputs: dict[Hashable, list[Tensor]] = {}
        self._pool: Any = None
        self.works = True
        """Whether no capture has failed so far."""

    def __reduce__(self) -> tuple[Any, ...]:  # graphs are of one process
        return CudaGraphs, (self.most, self.mib)

    def serve(self, tensors: Sequence[Tensor]) -> bool:
        """Whether functions of these are captured."""
        small = sum(x.nbytes for x in tensors) <= self.mib * 2**20
        on_gpu = all(x.device.type == "cuda" for x in tensors)
        if not (self.works and on_gpu and small) or torch.compiler.is_compiling():
            return False
        here = torch.cuda.current_device()  # a capture records what is issued on this GPU alone
        return all(x.device.index == here for x in tensors)

    def __call__(
        self, key: Hashable, function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """What function(*tensors) gives, by a graph if the key has been seen before.

        Args:
            key: Of everything that the function depends on beside the tensors' values.
            function: A function of the tensors.
            tensors: Its arguments, on one GPU.
        """
        known = self._graphs.get(key)
        if known is None and key in self._once and key not in self._waiting and len(self._graphs) < self.most:
            known = self._captured(key, function, tensors)
        if known is None:
            if len(self._once) > 4 * self.most:
                self._once.clear()
                self._waiting.clear()
            self._once.add(key)
            return function(*tensors)
        _fill(known.inputs, tensors)
        known.graph.replay()
        return [x.clone() for x in known.outputs]

    def _captured(self, key: Hashable, function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor]):  # noqa: ANN202
        kind = tuple((x.shape, x.stride(), x.dtype, x.device) for x in tensors)
        inputs = self._inputs.get(kind)
        if inputs is None:
            with torch.inference_mode(False):  # training may have to write to what an evaluation made
                inputs = self._inputs[kind] = [torch.empty_like(x.detach()) for x in tensors]
        _fill(inputs, tensors)
        graph, stream, current = torch.cuda.CUDAGraph(), torch.cuda.Stream(), torch.cuda.current_stream()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                waits = waits_for_gpu(lambda: function(*inputs))
            current.wait_stream(stream)
            if waits:
                self._waiting.add(key)
                _log.debug("not captured as a CUDA graph, since it waits for the GPU: %s", key)
                return None
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                outputs = list(function(*inputs))
        except Exception as error:  # a library in between that cannot be captured, say
            torch.cuda.set_stream(current)  # a capture that fails stays in its own
            self.works = False
            _log.warning(
                "layers are not replayed as CUDA graphs (%s): their kernels are issued one by one", error_line(error)
            )
            return None
        return self._graphs.setdefault(key, _Graph(graph, inputs, outputs))


def waits_for_gpu(function: Callable[[], object]) -> bool:
    """Whether a call made the host wait for the GPU, as torch.cuda.set_sync_debug_mode counts it.

    It counts for all threads of the process: another one's wait in the same moment is taken for the function's.
    """
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    waits = [x for x in caught if "synchronizing CUDA operation" in str(x.message)]
    for x in caught:
        if x not in waits:
            warnings.warn_explicit(x.message, x.category, x.filename, x.lineno)
    return bool(waits)


def _fill(inputs: list[Tensor], tensors: Sequence[Tensor]) -> None:
    """Copy values only: autograd would hang the graph of every step on the inputs, each behind the one before."""
    with torch.no_grad():
        torch._foreach_copy_(inputs, list(tensors))
