"""Captures of models whose weights are in slices, or in main memory."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor, nn

from dit_shd.attention.capture import Capture, Captures
from dit_shd.attention.recording.attach import capture
from dit_shd.core.dtensor import is_sharded


class KeptWeights:
    """Captures that outlive the blocks of a sharded or offloaded model, whose weights do not: W^O is copied once.

    For a frozen model only.
    """

    def __init__(self) -> None:
        self._out: dict[str, Tensor] = {}

    def of(self, layer: str, capture: Capture) -> Capture:
        if capture.out is not None and layer not in self._out:
            self._out[layer] = capture.out.to(capture.query.device, copy=True)
        bias = capture.bias
        bias = None if bias is None else bias.rebuilt([leaf.clone() for leaf in bias.leaves])
        return replace(capture, out=self._out.get(layer), bias=bias)


@contextmanager
def captured(model: nn.Module, layers: Sequence[str] | None = None) -> Generator[Captures]:
    """capture(model, layers), for a frozen model in slices as well."""
    if not is_sharded(model):
        with capture(model, layers) as captures:
            yield captures
        return
    held: dict[str, Capture] = {}
    kept = KeptWeights()

    def sink(layer: str, recorded: Capture) -> None:
        held[layer] = kept.of(layer, recorded)

    with capture(model, layers, sink=sink):
        yield held
