"""Captures as the kernels take them: whether they can be, and what of a teacher they work out."""

import importlib.util
import itertools
import os
from typing import Any

import torch
from torch import Tensor

from dit_shd.attention.bias import DenseBias
from dit_shd.attention.capture import Capture
from dit_shd.attention.relative_bias import RelativeBias
from dit_shd.attention.tiles import index_tensor

if importlib.util.find_spec("triton"):
    from dit_shd.squeezing.kernels import launch as operators
else:  # it is not made for every platform
    operators: Any = None

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDEST = 128
"""Head width that the kernels' blocks are made for."""


def unfit(teacher: Capture, student: Capture | None = None) -> str | None:
    """Why this backend cannot serve; None where it can."""
    if operators is None:
        return "triton is not installed"
    for side in (teacher,) if student is None else (teacher, student):
        reason = _unfit(side)
        if reason:
            return reason
    return None


def _unfit(side: Capture) -> str | None:
    tensors = (side.query, side.key, side.value)
    if side.query.device.type != "cuda" and not interpreted():
        return f"the tensors are on {side.query.device.type}, not on a GPU"
    if side.query.dtype not in DTYPES or len({x.dtype for x in tensors}) > 1:
        return f"query, key and value are of {', '.join(sorted({str(x.dtype) for x in tensors}))}"
    if max(side.query.shape[3], side.value.shape[3]) > WIDEST:
        return f"heads are wider than {WIDEST}"
    if side.bias is not None and type(side.bias) not in (DenseBias, RelativeBias):
        return f"a {type(side.bias).__name__} is neither dense nor relative"
    if side.bias is not None and side.bias.leaves[0].dtype not in DTYPES:
        return f"the bias is of {side.bias.leaves[0].dtype}"
    return None


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on a CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def side_of(capture: Capture, temperature: float) -> dict[str, Any]:
    """A capture as the operators take it."""
    query, key = (_rows_together(x) for x in (capture.query, capture.key))
    nothing = query.new_empty(0)
    codes = [torch.empty(0, dtype=torch.int32, device=query.device)] * 2
    bias, added, offset = "none", nothing, 0
    if isinstance(capture.bias, DenseBias):
        bias, added = "dense", capture.bias.leaves[0].expand(-1, -1, -1, capture.key.shape[2])
    elif isinstance(capture.bias, RelativeBias):
        bias, added, window = "relative", capture.bias.leaves[0].t().contiguous(), capture.bias.window
        offset = (window - 1) * (2 * window - 1) + (window - 1)
        code = capture.bias.code
        code = RelativeBias.codes(window)[None] if code is None else code
        query_code = code if capture.bias.query_code is None else capture.bias.query_code
        codes = [x.to(query.device, torch.int32).contiguous() for x in (query_code, code)]
    positions = capture.positions
    if capture.causal and positions is None:
        positions = torch.arange(query.shape[2], device=query.device)
    places = codes[0].new_empty(0) if positions is None else positions.to(torch.int32)
    return {
        "tensors": [query, key, added, *codes, places],
        "bias": bias,
        "causal": capture.causal,
        "factor": capture.scale / temperature,
        "bias_factor": 1.0 / temperature,
        "offset": offset,
    }


def _rows_together(x: Tensor) -> Tensor:
    """x[b,h,n,d] with d contiguous."""
    x = x.detach()
    return x if x.stride(3) == 1 else x.contiguous()


def values_met(capture: Capture, groups: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """A_i V_a [b,h,k,n,d] of every teacher head i with the values of its group; top and 1/total of every row [b,h,n].

    Heads that are in none of the groups meet no value.

    Args:
        groups: Of k heads each.
    """
    h, k = capture.heads, len(groups[0]) if groups else 0
    partners = [[-1] * k for _ in range(h)]
    for members in groups:
        for head in members:
            partners[head] = capture.key_heads(members)
    side, value = side_of(capture, 1.0), _rows_together(capture.value)
    found: list[Tensor] = []
    top = inverse = None
    for first in range(0, max(k, 1), 4):
        count = min(4, k - first)
        width = 4 if count == 3 else count
        chunk = [[*row[first : first + 4], *[-1] * (width - count)] for row in partners]
        place = index_tensor(tuple(itertools.chain(*chunk)), value.device).view(h, width).int()
        out, top, inverse = operators.attend(**side, value=value, partners=place, split=False)
        found.append(out[:, :, :count])
    assert top is not None and inverse is not None
    return torch.cat(found, 2), top, inverse


def row_sums(capture: Capture, temperature: float) -> tuple[Tensor, Tensor]:
    """Top and 1/total of the scores over T of every row [b,h,n]."""
    partners = torch.empty(capture.heads, 0, dtype=torch.int32, device=capture.query.device)
    side, value = side_of(capture, temperature), _rows_together(capture.value)
    return operators.attend(**side, value=value, partners=partners, split=False)[1:]
