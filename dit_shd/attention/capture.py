"""What one softmax attention layer worked with in one forward pass.

Nothing is computed here and no map is stored: a Capture refers to the tensors the layer already had. The student's
stay in the autograd graph, so a loss on them trains the student.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, overload

import torch
from torch import Tensor

from dit_shd.attention.bias import MASKED, Bias, DenseBias
from dit_shd.attention.softmax import softmax
from dit_shd.core.errors import UserError
from dit_shd.core.precision import wide_dtype

IMAGE = "image=slice(77, None), or slice(None, -77) where it comes first"
"""How to say where the image stands, where a model does not tell."""
WeightSource = Callable[[], Tensor | str]
"""Gives W^O by head [h,d,e] when it is wanted, or the reason why it cannot be had."""


class _OnDemand:
    """A field whose value may be a WeightSource, which is called when the field is read for the first time."""

    @overload
    def __get__(self, instance: None, owner: type) -> None: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Tensor | None: ...
    def __get__(self, instance: object | None, owner: type) -> Tensor | None:
        if instance is None:
            return None  # the field's default
        value = instance.__dict__["_out"]  # not vars(), which not every torch.compile can trace
        if callable(value):
            value = instance.__dict__["_out"] = value()
        return value if isinstance(value, Tensor) else None

    def __set__(self, instance: object, value: Tensor | WeightSource | str | None) -> None:
        object.__setattr__(instance, "_out", value)


@dataclass(frozen=True, eq=False)
class Capture:
    """One attention layer in one forward pass.

    Scores are S = scale * q k^T + bias, the map is A = softmax(S) over the keys, head i contributes
    A_i (V_i W_i^O) to the layer's output (arXiv 2502.07436, section 3).
    """

    query: Tensor
    """[b,h,n,d]"""
    key: Tensor
    """[b,h,m,d], or [b,h/r,m,d] where r neighbouring heads share their keys and values (grouped queries)."""
    value: Tensor
    """[b,h,m,d] or [b,h/r,m,d], as the key."""
    scale: float
    bias: Bias | None = None
    """Added to the scores; a tensor that broadcasts to [b,h,n,m] will do (a boolean one keeps what is True)."""
    causal: bool = False
    """Query i sees keys 0..i only (aligned at the first token, as in PyTorch's is_causal)."""
    out: _OnDemand = _OnDemand()
    """W^O by head: [h,d,e], if the layer has one; computed from the layer's weights when it is read."""
    mixed: Tensor | None = None
    """A V [b,h,n,d], where the layer's own result is at hand (it saves computing it again)."""
    positions: Tensor | None = None
    """[n], where the query rows are only some of the sequence's."""
    image: slice | None = None
    """Which keys are the image's, where text and image are one sequence and the image's queries are among the rows; an
    empty slice where that is not known."""
    share: float = 1.0
    """What it counts in a sum over layers: of a layer that takes its b samples one at a time, each is 1/b of it."""

    def __post_init__(self) -> None:
        for name in ("query", "key", "value"):
            if not isinstance(x := getattr(self, name), Tensor) or x.ndim != 4:
                given = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
                raise UserError(f"capture: {name}: wanted a tensor [b,h,tokens,d], found {given}")
        b, h, n, d = self.query.shape
        b_k, h_k, m, d_k = self.key.shape
        if b_k != b or d_k != d or h % max(h_k, 1) or self.value.shape[:3] != self.key.shape[:3]:
            raise UserError(
                f"capture: wanted query [b,h,n,d], key [b,h,m,d] and value [b,h,m,d], found "
                f"{tuple(self.query.shape)}, {tuple(self.key.shape)} and {tuple(self.value.shape)}"
            )
        if not b * h * n * m:
            raise UserError(f"capture: wanted at least one sample, head, query and key, found {self.shape}")
        if self.bias is not None and not isinstance(self.bias, Bias):
            object.__setattr__(self, "bias", _dense(self.bias, self.shape))
        if self.bias is not None and any(x not in (1, y) for x, y in zip(self.bias.shape(), self.shape)):
            raise UserError(f"capture: wanted a bias that broadcasts to {self.shape}, found {self.bias.shape()}")
        out = self.__dict__["_out"]
        if isinstance(out, Tensor) and (out.ndim != 3 or out.shape[:2] != (h, self.value.shape[3])):
            raise UserError(
                f"capture: wanted W^O by head [h,d,e] = [{h},{self.value.shape[3]},e], found {tuple(out.shape)}"
            )

    def __getstate__(self) -> dict[str, Any]:
        _ = self.out  # a copy has what W^O is now, no way to read it from the model
        return dict(self.__dict__)

    @property
    def bias_leaves(self) -> tuple[Tensor, ...]:
        """The tensors that its bias is made of."""
        return () if self.bias is None else self.bias.leaves

    @property
    def heads(self) -> int:
        return self.query.shape[1]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The lengths (b, h, n, m)."""
        return (*self.query.shape[:3], self.key.shape[2])  # type: ignore[return-value]

    @property
    def why_no_out(self) -> str:
        """Why there is no W^O, where `out` is None."""
        reason = None if self.out is not None else self.__dict__["_out"]
        return reason if isinstance(reason, str) else ""

    def without_out(self, reason: str) -> Self:
        """The same without W^O, which is not read; one that had none keeps its own reason."""
        known = self.__dict__["_out"]
        return replace(self, out=known if isinstance(known, str) else reason)

    def read_by(self, note: Callable[[], object]) -> Self:
        """The same, which calls `note` when W^O is read for the first time."""
        source = self.__dict__["_out"]

        def read() -> Tensor | str:
            note()
            return source()

        return replace(self, out=read) if callable(source) else self

    @property
    def masks(self) -> bool:
        """Whether a query row may have every key masked."""
        return self.bias is not None and self.bias.masks

    def hidden(self, rows: slice) -> Tensor | None:
        """Which keys a mask hides, broadcastable to [b,h,r,m]: by the bias, as scores of q and k may be low, too."""
        return self.bias.rows(rows) <= MASKED if self.bias is not None and self.masks else None

    def key_heads(self, heads: Sequence[int]) -> list[int]:
        """The heads of `key` and `value` that some query heads work with."""
        shared = self.heads // self.key.shape[1]
        return [head // shared for head in heads]

    def scores(self, rows: slice = slice(None)) -> Tensor:
        """S[b,h,r,m] of some query rows, in float32 (float64 if the query is), with its graph."""
        wide = wide_dtype(self.query)
        key = self.key.to(wide)
        if (shared := self.heads // key.shape[1]) > 1:
            key = key.repeat_interleave(shared, 1)
        scores = (self.query[:, :, rows].to(wide) @ key.transpose(2, 3)) * self.scale
        if self.bias is not None:
            scores = scores + self.bias.rows(rows)
        if self.causal:
            n, m = self.query.shape[2], self.key.shape[2]
            at = torch.arange(n, device=scores.device) if self.positions is None else self.positions
            scores = scores.masked_fill(torch.arange(m, device=scores.device) > at[rows, None], float("-inf"))
        return scores

    def map(self, rows: slice = slice(None), temperature: float = 1.0) -> Tensor:
        """softmax(S / temperature)[b,h,r,m]; a row with every key masked is all zeros, as SDPA has it."""
        scores = self.scores(rows)
        if temperature != 1:  # from the row's highest on: a mask of finfo.min is not to overflow
            lowest = torch.finfo(scores.dtype).min
            scores = (scores - scores.detach().amax(-1, keepdim=True).clamp(min=lowest)) / temperature
        return softmax(scores, self.masks)

    def detach(self) -> "Capture":
        """The same without a graph; itself, if it has none."""
        parts = {name: self.__dict__[name] for name in ("query", "key", "value", "mixed")}
        parts["out"] = self.__dict__["_out"]
        tensors = {name: x for name, x in parts.items() if isinstance(x, Tensor) and x.requires_grad}
        bias = self.bias.detach() if self.bias is not None and self.bias.needs_grad() else self.bias
        if not tensors and bias is self.bias:
            return self
        return self._with(bias=bias, **{name: x.detach() for name, x in tensors.items()})

    def select(self, rows: Tensor) -> "Capture":
        """The query rows with these indices [r]."""
        return self._with(
            query=self.query[:, :, rows],
            bias=None if self.bias is None else self.bias.select(rows),
            mixed=None if self.mixed is None else self.mixed[:, :, rows],
            positions=rows if self.positions is None else self.positions[rows],
        )

    def over_image(self, where: slice | None = None) -> "Capture":
        """Image queries over image keys, renormalised over them; all of what is no joint sequence of text and image.

        Args:
            where: Which keys are the image's, where the layer's own modules do not tell it.

        Raises:
            UserError: The layer has a bias that is no tensor, or is causal; or where the image stands is not known.
        """
        image = where if self.image is None else self.image
        if image is None:
            return self
        if image.start == image.stop:
            raise UserError(
                f"capture: where the image stands among {self.key.shape[2]} tokens of text and image is not known, so "
                f"that its block cannot be cut; block=joint, or say it to capture: {IMAGE}"
            )
        if self.causal or not isinstance(self.bias, DenseBias | None):
            raise UserError("capture: the image's block of a causal map, or of one with a bias of rules, cannot be cut")
        n, m = self.query.shape[2], self.key.shape[2]
        rows = image if n == m else slice(0, n)
        return self._with(
            query=self.query[:, :, rows],
            key=self.key[:, :, image],
            value=self.value[:, :, image],
            bias=None if self.bias is None else self.bias.block(rows, image),
            mixed=None,
            image=None,
        )

    def with_tensors(self, query: Tensor, key: Tensor, value: Tensor, mixed: Tensor | None = None) -> "Capture":
        """The same layer with other queries, keys, values and A V, of the same shapes."""
        return self._with(query=query, key=key, value=value, mixed=mixed)

    def with_new_bias(self) -> "Capture":
        """The same with a bias that has made nothing of its leaves yet, so that what it makes belongs to this one."""
        return self if self.bias is None else self._with(bias=self.bias.rebuilt(self.bias.leaves))

    def _with(self, **changes: Any) -> "Capture":
        """The same with other fields; W^O is not asked for."""
        return replace(self, **{"out": self.__dict__["_out"], **changes})


def _dense(bias: Any, shape: tuple[int, int, int, int]) -> DenseBias:
    """A bias or mask that was given as a tensor, by torch's own broadcasting: [n,m], [h,n,m], [b,1,n,m], ..."""
    if not isinstance(bias, Tensor):
        raise UserError(f"capture: bias: wanted a tensor or a Bias, found {type(bias).__name__}")
    if bias.dtype != torch.bool and not bias.is_floating_point():
        raise UserError(f"capture: bias: wanted floating or boolean, found {bias.dtype}; a 0/1 mask: mask.bool()")
    if bias.ndim > 4 or any(x not in (1, y) for x, y in zip(reversed(bias.shape), reversed(shape))):
        raise UserError(
            f"capture: bias: wanted a tensor that broadcasts to [b,h,n,m] = {list(shape)}, found {list(bias.shape)}; "
            "one [n,m] of each sample is mask[:, None], one [m] of each sample mask[:, None, None]"
        )
    if bias.dtype != torch.bool and bias.device.type != "meta" and not bool((bias < torch.inf).all()):
        raise UserError("capture: bias: wanted finite numbers or minus infinity, found NaN or plus infinity")
    return DenseBias(bias)


def one_layer(capture: Any, where: str) -> None:
    """Refuse what is no Capture.

    Raises:
        UserError: Saying where a Capture comes from.
    """
    if not isinstance(capture, Capture):
        raise UserError(
            f"{where}: wanted a Capture, found {type(capture).__name__}; captures['LAYER'] is one, after a forward "
            "inside `with capture(model) as captures`"
        )


Captures = Mapping[str, Capture]
"""Layer name -> Capture, in the order in which the layers ran."""


def layer_of(name: str) -> str:
    """The layer of a capture's name: LAYER, LAYER#2 (its second call) and LAYER:text (its text rows) are of one."""
    return name.partition("#")[0].partition(":")[0]


def whole_of(name: str, capture: Capture) -> str:
    """The name of what a capture is a share of, for all samples: LAYER:text of LAYER#2:text; else its own."""
    if capture.share == 1:
        return name
    path, mark, part = name.partition(":")
    return path.partition("#")[0] + mark + part
