"""One softmax for everybody: rows with every key masked are zeros, as SDPA has it, and not NaN."""

from torch import Tensor


def softmax(scores: Tensor, temperature: float = 1.0, masks: bool = True) -> Tensor:
    """softmax over the last axis of scores / temperature; zeros where all of a row is -inf, if `masks` is possible."""
    if temperature != 1.0:
        scores = scores / temperature
    maps = scores.softmax(dim=-1)
    if not masks:
        return maps
    return maps.masked_fill(scores.amax(dim=-1, keepdim=True) == float("-inf"), 0.0)
