"""Calls of PyTorch's softmax attention, noted while somebody else's modules run.

Every softmax attention of diffusers (native backend), timm and transformers (sdpa) ends in one function, so a function
mode around a module sees what it worked with, whatever the module looks like. nn.MultiheadAttention hides the call in
F.multi_head_attention_forward, in whose place a copy of it runs that function modes see into.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dit_shd.attention.capture import Capture
from dit_shd.attention.recording.heads import (
    heads_among_rows,
    heads_beside_windows,
    heads_in_batch,
    heads_in_rows,
    windows_as_samples,
)
from dit_shd.attention.recording.tokens import Tokens
from dit_shd.attention.recording.writes import Mark, marks_of, written, written_to

RawCall = tuple[tuple[Any, ...], dict[str, Any], Tensor, tuple[Mark, ...]]
"""Positional arguments, keywords, result, and the marks of query, key, value, mask and result as it was made."""
Given = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional arguments and keywords of a module."""
_aten = torch.ops.aten.scaled_dot_product_attention
ATTENTION: tuple[Any, ...] = (F.scaled_dot_product_attention, _aten, _aten.default)
"""The function itself, and what stands for it in exported models."""
See = Callable[[Any, tuple[Any, ...], dict[str, Any]], None]
"""Takes every function that has run."""


class SDPATap(TorchFunctionMode):
    """Appends every call of scaled_dot_product_attention to `calls`; changes nothing. Traceable by torch.compile."""

    def __init__(self, calls: list[RawCall], see: See | None = None):
        super().__init__()
        self.calls, self.see = calls, see

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with MultiHead(self.calls, *heads_and_dropout(args, kwargs), self.see):
                return multi_head_attention(*args, **kwargs)
        result = func(*args, **kwargs)
        if self.see is not None:
            self.see(func, args, kwargs)
        if func in ATTENTION:
            self.calls.append(raw_call(args, kwargs, result))
        return result


_OPENED = {"has_torch_function": lambda _given: False}
"""What the copy below calls in place of F's own, so that its calls reach function modes."""
_plain = cast("FunctionType", F.multi_head_attention_forward)
_copy = FunctionType(_plain.__code__, {**_plain.__globals__, **_OPENED}, _plain.__name__, _plain.__defaults__)
_copy.__kwdefaults__ = _plain.__kwdefaults__


def multi_head_attention(*args: Any, **kwargs: Any) -> Any:
    """F.multi_head_attention_forward, whose own calls reach function modes, as they do not where F runs it.

    A copy, so that nothing of PyTorch is changed, in no thread; torch.compile looks into it, not into the original. It
    calls what somebody has put in the place of functions of F since, too.
    """
    if not torch.compiler.is_compiling():
        _copy.__globals__.update({**_plain.__globals__, **_OPENED})
    return _copy(*args, **kwargs)


def heads_and_dropout(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[int, float]:
    """What F.multi_head_attention_forward was called with."""
    heads = args[4] if len(args) > 4 else kwargs["num_heads"]
    dropout = args[10] if len(args) > 10 else kwargs["dropout_p"]
    return heads, dropout if kwargs.get("training", True) else 0.0


class MultiHead(TorchFunctionMode):
    """Inside F.multi_head_attention_forward: notes its call of scaled_dot_product_attention.

    With need_weights it multiplies and takes the softmax itself: then, the call that would have given the same (its
    query is scaled already).
    """

    def __init__(self, calls: list[RawCall], heads: int, dropout: float, see: See | None = None):
        super().__init__()
        self.calls, self.heads, self.dropout, self.see = calls, heads, dropout, see
        self.scores: tuple[Tensor, Tensor, Tensor | None] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.see is not None:
            self.see(func, args, kwargs)
        self.note(func, args, kwargs, result)
        return result

    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> RawCall | None:
        """Take in one function that ran; the call that it completes, if any."""
        before = len(self.calls)
        if func in ATTENTION:
            self.calls.append(raw_call(args, kwargs, result))
        elif func is torch.baddbmm:
            self.scores = (args[1], args[2].transpose(1, 2), args[0])
        elif func is torch.bmm and self.scores is None:
            self.scores = (args[0], args[1].transpose(1, 2), None)
        elif func is torch.bmm and self.scores is not None:
            query, key, mask = self.scores
            self.scores = None
            split = [x.view(-1, self.heads, *x.shape[1:]) for x in (query, key, args[1], result)]
            if mask is not None and mask.ndim == 3:
                mask = mask.view(-1, self.heads, *mask.shape[1:]) if mask.shape[0] > 1 else mask[None]
            how = {"attn_mask": mask, "scale": 1.0, "dropout_p": self.dropout}
            self.calls.append(raw_call((split[0], split[1], split[2]), how, split[3]))
        return self.calls[-1] if len(self.calls) > before else None


@dataclass(frozen=True, eq=False)
class Call:
    """One call: softmax(scale q k^T + mask) v."""

    query: Tensor
    """[b,h,n,d]"""
    key: Tensor
    """[b,h or fewer,m,d]"""
    value: Tensor
    mixed: Tensor | None
    """The result [b,h,n,d], unless dropout has changed it."""
    mask: Tensor | None
    """Broadcastable to [b,h,n,m]; boolean (True is kept) or added to the scores."""
    causal: bool
    scale: float
    share: float = 1.0
    """Of its layer, where the layer makes several calls, of a sample each."""

    @staticmethod
    def given(raw: RawCall) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The query, key, value and mask of a call."""
        return _arguments(*raw[0], **raw[1])[:4]

    @classmethod
    def of(cls, raw: RawCall, tokens: Tokens) -> "Call":
        """The arguments of a call by their names.

        Args:
            raw: The call.
            tokens: What its module was given.

        Raises:
            ValueError: What Captures are not made of.
        """
        args, kwargs, result, _ = raw
        query, key, value, mask, dropout, causal, scale = _arguments(*args, **kwargs)
        if query.is_nested or key.is_nested:
            raise ValueError("nested (jagged) tensors cannot be recorded; pad the sequences and give a mask")
        mask, diagonal = _read(mask, query, key)
        causal = causal or diagonal
        if query.ndim == key.ndim == value.ndim == 3:  # [b,n,d]: a single head
            heads = heads_in_batch(query, tokens)
            if heads > 1 and heads_in_rows(query[:, None], value[:, None], tokens) == 1:
                raise ValueError(
                    f"heads lie in the batch: wanted a query [b,h,n,d], found {list(query.shape)}, where its module "
                    f"was given {len(query) // heads} samples; view q, k and v as [{len(query) // heads},{heads},n,d] "
                    "in the model"
                )
            query, key, value, result = (x[:, None] for x in (query, key, value, result))
            mask = mask[:, None] if mask is not None and mask.ndim == 3 else mask
        if query.ndim == key.ndim == value.ndim == 5:
            heads = heads_beside_windows(query, key, tokens)
            if mask is not None and mask.ndim > 2:
                mask = mask[(None,) * (5 - mask.ndim)]
                mask = windows_as_samples(mask.expand(*query.shape[:3], *mask.shape[3:]), heads)
            query, key, value, result = (windows_as_samples(x, heads) for x in (query, key, value, result))
        if not query.ndim == key.ndim == value.ndim == 4:
            shapes = ", ".join(str(list(x.shape)) for x in (query, key, value))
            raise ValueError(f"wanted query, key and value [b,h,n,d], found {shapes}")
        if heads_among_rows(query, mask, tokens):
            query, result = (x.flatten(1, 2)[:, :, None] for x in (query, result))
            mask = mask.flatten(1, 2)[:, :, None] if mask is not None and mask.ndim == 4 and mask.shape[1] > 1 else mask
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return cls(query, key, value, None if dropout else result, mask, causal, scale)


def _read(mask: Tensor | None, query: Tensor, key: Tensor) -> tuple[Tensor | None, bool]:
    """A mask as numbers, or whether it is that of causal attention.

    Raises:
        ValueError: It is a class whose numbers are not what attention reads.
    """
    bias: Any = sys.modules.get("torch.nn.attention.bias")  # who has its masks has it; to import it costs a second
    if bias is not None and isinstance(mask, bias.CausalBias):
        causal: Any = mask  # its numbers are never written
        rows, keys = causal.seq_len_q, causal.seq_len_kv
        if causal.variant == bias.CausalVariant.UPPER_LEFT or rows == keys:
            return None, True
        if (rows, keys) == (query.shape[-2], key.shape[-2]):
            return torch.ones(rows, keys, dtype=torch.bool, device=query.device).tril(keys - rows), False
        sizes = f"{query.shape[-2]} queries and {key.shape[-2]} keys"
        raise ValueError(f"its causal_lower_right({rows}, {keys}) is not that of {sizes}; make it of their numbers")
    if mask is not None and not _is_plain(type(mask)):
        raise ValueError(
            f"its mask is a {type(mask).__name__}, a tensor with functions of its own, whose numbers need not be what "
            "attention adds; give scaled_dot_product_attention a plain tensor"
        )
    return mask, False


def _is_plain(kind: type[Tensor]) -> bool:
    """Whether functions do with tensors of a class what they do with others: its numbers may be anywhere."""
    function: Any = kind.__torch_function__
    return function is torch._C._disabled_torch_function_impl or getattr(function, "__func__", None) is _PLAIN.__func__


_PLAIN: Any = Tensor.__torch_function__


def raw_call(args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> RawCall:
    """A call that has just been made; a compiled program counts no writes."""
    marks = () if torch.compiler.is_compiling() else marks_of(*_arguments(*args, **kwargs)[:4], result)
    return args, kwargs, result, marks


def inputs_written(raw: RawCall) -> bool:
    """Whether the query, key, value or mask of a call have been written to since."""
    return written(raw[3][:4], Call.given(raw))


def result_written(raw: RawCall) -> bool:
    """Whether what it gave has been written to since."""
    return written(raw[3][4:], [raw[2]])


@dataclass(frozen=True, eq=False)
class _Noted:
    """The marks of the tensors of a capture; copies and pickles, with other tensors, have none."""

    marks: tuple[Mark, ...]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, ()


def noted(capture: Capture) -> Capture:
    """The capture itself, for which `unchanged` will tell whether its tensors have been written to since."""
    vars(capture)["_noted"] = _Noted(_marks_of(capture))
    return capture


def unchanged(name: str, capture: Capture) -> Capture:
    """A capture as it was noted, if it was; without what the layer gave, if that alone has been written to.

    Raises:
        UserError: Its queries, keys, values or mask were written to.
    """
    known = vars(capture).get("_noted")
    if not isinstance(known, _Noted) or torch.compiler.is_compiling():
        return capture
    before, now = known.marks, _marks_of(capture)
    if now == before:
        return capture
    if now[:-1] != before[:-1]:
        raise written_to(name)
    return noted(capture.with_tensors(capture.query, capture.key, capture.value, None))


def _marks_of(capture: Capture) -> tuple[Mark, ...]:
    """Of the tensors that a capture refers to, what the layer gave last."""
    return marks_of(capture.query, capture.key, capture.value, *capture.bias_leaves, capture.mixed)


def _arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, float, bool, float | None]:
    return query, key, value, attn_mask, dropout_p, is_causal, scale
