"""torch's counter of operations, with convolutions of groups counted as what they are."""

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

Sizes = Sequence[int]


def flop_counter() -> FlopCounterMode:
    """A counter that prints nothing; a multiply-add counts as two."""
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _backward})


def _backward(grad: Sizes, x: Sizes, weight: Sizes, *rest: *tuple[object, ...], **out_shape: object) -> int:
    """Operations of a convolution's backward: the gradients of input and weight take as many as its forward each.

    torch's own formula passes over groups in that of the weight, which makes a depthwise convolution's too large by
    the number of its channels.

    Args:
        grad: The shape of the output's gradient.
        x: Of the input.
        weight: [c_out, c_in / groups, ...]; if it is transposed [c_in, c_out / groups, ...].
        rest: Of aten::convolution_backward: sizes of the bias, stride, padding, dilation, transposed, output padding,
            groups, and whether the gradients of input, weight and bias are wanted.
        out_shape: Their shapes.
    """
    transposed, wanted = rest[4], rest[7]
    assert isinstance(wanted, Sequence)
    return sum(wanted[:2]) * conv_flop_count([*x], [*weight], [*grad], bool(transposed))
