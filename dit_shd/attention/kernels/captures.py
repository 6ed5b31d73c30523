"""Captures as the kernels take them: whether they can be, and attention by kernels where it works."""

import functools
import importlib.util
import logging
import os
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from dit_shd.attention.bias import Bias, DenseBias
from dit_shd.attention.capture import Capture
from dit_shd.attention.relative_bias import RelativeBias, lines_of
from dit_shd.attention.tiles import index_tensor
from dit_shd.core.errors import error_line

if importlib.util.find_spec("triton"):
    from dit_shd.attention.kernels import launch as operators
else:  # it is not made for every platform
    operators: Any = None

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDEST = 128
"""Head width that the kernels' blocks are made for."""
MOST_SAMPLES = 65535
"""What CUDA takes in the second and the third dimension of a grid."""
_log = logging.getLogger("dit_shd")


def unfit(*captures: Capture) -> str | None:
    """Why the kernels cannot serve captures; None where they can."""
    reasons = (why_not(x.query, x.key, x.value, x.bias) for x in captures)
    return next((reason for reason in reasons if reason), None)


def why_not(query: Tensor, key: Tensor, value: Tensor, bias: Bias | None) -> str | None:
    """Why the kernels cannot serve attention of these; None where they can."""
    if operators is None:
        return "triton is not installed"
    if query.device.type != "cuda" and not interpreted():
        return f"the tensors are on {query.device.type}, not on a GPU"
    if query.dtype not in DTYPES or len({x.dtype for x in (query, key, value)}) > 1:
        return f"query, key and value are of {', '.join(sorted({str(x.dtype) for x in (query, key, value)}))}"
    if max(query.shape[3], value.shape[3]) > WIDEST:
        return f"heads are wider than {WIDEST}"
    if bias is not None and type(bias) not in (DenseBias, RelativeBias):
        return f"a {type(bias).__name__} is neither dense nor relative"
    if bias is not None and bias.leaves[0].dtype not in DTYPES:
        return f"the bias is of {bias.leaves[0].dtype}"
    if query.shape[0] > MOST_SAMPLES:
        return f"a GPU's grid takes {MOST_SAMPLES} samples, these are {query.shape[0]}"
    if max(_reach(x) for x in (query, key, value, *(() if bias is None else bias.leaves))) >= 2**31:
        return "a head's numbers lie 2^31 apart or more, kernels count them in 32 bits"
    return None


def unrepeatable(bias: Bias | None, learns: bool) -> str | None:
    """Why a bias's gradient is another one each time, where deterministic algorithms are asked for; else None."""
    alone = bias is None or (isinstance(bias, RelativeBias) and bias.code is None)  # no two programs meet
    if alone or not (learns and torch.is_grad_enabled() and torch.are_deterministic_algorithms_enabled()):
        return None
    return "deterministic algorithms are asked for, and the gradient of this bias is added up in any order"


def _reach(x: Tensor) -> int:
    """How far the numbers [n,d] of one head lie apart, in x or, of a bias, in its gradient."""
    (n, d), (by_row, by_column) = x.shape[-2:], x.stride()[-2:]
    return max((n - 1) * by_row + (d - 1) * by_column, n * d - 1)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on a CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


_codes: dict[tuple[int, torch.device], Tensor] = {}
_tensors: WeakKeyDictionary[Capture, tuple[list[int], list[Tensor]]] = WeakKeyDictionary()


def side_of(capture: Capture, temperature: float) -> dict[str, Any]:
    """A capture as the operators take it; its tensors are prepared once, as long as they do not change in place."""
    bias, offset = "none" if capture.bias is None else "dense", 0
    if isinstance(capture.bias, RelativeBias):
        window = capture.bias.window
        bias = "lines" if _is_in_lines(capture.bias) else "relative"
        offset = (window - 1) * (2 * window - 1) + (window - 1)
    return {
        "tensors": _tensors_of(capture),
        "bias": bias,
        "causal": capture.causal,
        "factor": capture.scale / temperature,
        "bias_factor": 1.0 / temperature,
        "offset": offset,
    }


def _tensors_of(capture: Capture) -> list[Tensor]:
    """Query, key, what is added, codes of queries and keys, places; prepared once."""
    if torch.compiler.is_compiling():  # a graph has no cache
        return _prepared(capture)
    sources = [capture.query, capture.key, *capture.bias_leaves]
    versions = [0 if x.is_inference() else x._version for x in sources]
    known = _tensors.get(capture)
    if known is None or known[0] != versions:
        known = _tensors[capture] = versions, _prepared(capture)
    return known[1]


def _prepared(capture: Capture) -> list[Tensor]:
    query, key, bias = rows_together(capture.query), rows_together(capture.key), capture.bias
    nothing = index_tensor((), query.device, torch.int32)
    added, codes, positions = nothing, [nothing, nothing], capture.positions
    if isinstance(bias, DenseBias):
        added = bias.leaves[0].expand(-1, -1, -1, key.shape[2])
    elif isinstance(bias, RelativeBias) and _is_in_lines(bias):
        added = lines_of(bias.leaves[0].detach().t(), bias.window)
        codes = [operators.starts_of(bias.window, query.device)] * 2
    elif isinstance(bias, RelativeBias):
        added, codes = bias.leaves[0].t().contiguous(), codes_of(bias, query.device)
    if capture.causal and positions is None:
        positions = torch.arange(query.shape[2], device=query.device)
    return [query, key, added, *codes, nothing if positions is None else positions.to(torch.int32)]


def _is_in_lines(bias: RelativeBias) -> bool:
    return bias.code is None and bias.query_code is None and operators.in_lines(bias.window)


def codes_of(bias: RelativeBias, device: torch.device) -> list[Tensor]:
    """The codes of query and key tokens, int32 [b or 1,n] and [b or 1,m]."""
    if bias.code is None or bias.query_code is None:
        return [_grid_codes(bias.window, device)] * 2
    return [x.to(device, torch.int32).contiguous() for x in (bias.query_code, bias.code)]


def _grid_codes(window: int, device: torch.device) -> Tensor:
    """The codes of all tokens [1,n], made once."""
    if torch.compiler.is_compiling():  # a graph has no cache
        return RelativeBias.codes(window, device)[None]
    codes = _codes.get((window, device))
    if codes is None:
        with torch.inference_mode(False):  # a backward may have to keep them
            codes = RelativeBias.codes(window, device)[None]
        if type(codes) is Tensor:  # none that only stands for one
            _codes[window, device] = codes
    return codes


def rows_together(x: Tensor) -> Tensor:
    """x[b,h,n,d] with d contiguous, without its graph."""
    x = x.detach()
    return x if x.stride(3) == 1 else x.contiguous()


def serves(query: Tensor, key: Tensor, value: Tensor, bias: Bias | None) -> bool:
    """Whether attention with a bias is the kernels' by default: on a GPU, if they can serve it and work there."""
    if query.device.type != "cuda" or why_not(query, key, value, bias) is not None:
        return False
    if unrepeatable(bias, bias is not None and bias.needs_grad()) is not None:
        return False
    if torch.compiler.is_compiling():  # no trial in a graph
        return True
    return _works(query.device, query.dtype, query.shape[3], value.shape[3], type(bias).__name__)


@functools.cache
def _works(device: torch.device, dtype: torch.dtype, d: int, width: int, bias: str) -> bool:
    """Whether a small attention, forward and backward, runs; if not, the reason is logged, once for each kind."""
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
            saved_tensors_hooks(_itself, _itself),  # a block that is recomputed must not count what a trial saves
        ):
            query, key = (torch.zeros(1, 1, 4, d, dtype=dtype, device=device, requires_grad=True) for _ in range(2))
            leaf = torch.zeros(12 if bias == "RelativeBias" else 4, 1, device=device)
            added = RelativeBias(leaf, 2) if bias == "RelativeBias" else DenseBias(leaf)
            attention(query, key, key.new_zeros(1, 1, 4, width), 1.0, added).sum().backward()
        return True
    except Exception as error:  # a compiler fails in many ways
        _log.warning("attention by Triton kernels fails on %s (%s): it is streamed", device, error_line(error))
        return False


def _itself(x: Tensor) -> Tensor:
    return x


def attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Bias | None, causal: bool = False
) -> Tensor:
    """softmax(scale q k^T + bias) v by Triton kernels [b,h,n,v], in the query's precision.

    Args:
        query: [b,h,n,d].
        key: [b,h,m,d], or fewer heads that are shared.
        value: [b,h,m,v], or fewer heads.
        scale: Factor of the scores.
        bias: Added to them, or nothing.
        causal: Query i sees keys 0..i only.
    """
    (b, h, n, d), (b_k, h_k, m, d_k) = query.shape, key.shape
    if b_k != b or d_k != d or h % h_k or value.shape[:3] != key.shape[:3]:
        shapes = ", ".join(str(list(x.shape)) for x in (query, key, value))
        raise ValueError(f"attention: wanted query [b,h,n,d], key [b,h,m,d] and value [b,h,m,v], found {shapes}")
    if bias is not None and any(x not in (1, y) for x, y in zip(bias.shape(), (b, h, n, m))):
        raise ValueError(f"attention: wanted a bias that broadcasts to {[b, h, n, m]}, found {list(bias.shape())}")
    query, key, value = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key, value))
    nothing = query.new_empty(0, dtype=torch.int32)
    leaf, kind, window, codes = query.new_empty(0), "none", 1, [nothing, nothing]
    if bias is not None:
        (leaf,) = bias.leaves
    if isinstance(bias, DenseBias):
        kind = "dense"
    elif isinstance(bias, RelativeBias):
        kind, window, codes = "grid" if bias.code is None else "tokens", bias.window, codes_of(bias, query.device)
    return operators.attention(query, key, value, leaf, *codes, kind, window, causal, scale)[0]
