"""Where the heads of an attention stand in its tensors: facts of classes, one row of LAYOUTS for each way to write it.

A map has a weight of outputs by inputs: nn.Linear, or transformers' Conv1D (GPT-2), which keeps it transposed. Heads
lie one after the other, each of them whole, so that a head that is kept keeps its rotary positions and its scale.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

from torch import nn


@dataclass(frozen=True)
class Layout:
    """One way of writing attention; names are those inside of its module."""

    first: str
    """The map to queries; or, if it is fused, the one to queries, keys and values in this order."""
    queries: tuple[str, ...]
    """What has the features of the query heads as outputs: maps, and norms over all heads."""
    keys: tuple[str, ...]
    """Likewise of the key-value heads."""
    values: tuple[str, ...]
    """Those of `keys` that are maps to values."""
    out: tuple[str, ...]
    """Maps from the heads back to tokens."""
    setting: str
    """What the width of a head follows from, for errors."""
    heads: str = ""
    """Attribute of the module that is the number of query heads."""
    width: str = ""
    """Attribute that is the width of a head; one of the two is named."""
    inner: str = ""
    """Attribute that is the number of features of all query heads, where it is not what `out` reads."""
    fused: bool = False
    paired: tuple[str, ...] = ()
    """Maps to keys and values, in this order, of as many heads as the queries have."""
    whole: bool = True
    """Whether a module with tensors beside these is another kind of attention; else they may have equal sizes."""
    classes: tuple[str, ...] = ()
    """PACKAGE.CLASS of the modules, where names do not say in which order heads lie; empty: any class."""
    mixable: tuple[str, ...] = ()
    """Those of them whose scores are queries times keys as the maps give them, by the root of the width of a head: the
    features of heads can be mixed, where no norm is of them (mixes)."""
    tables: tuple[str, ...] = ()
    """Tensors with a column for each head."""

    def firsts(self, parts: Collection[str]) -> list[str]:
        """Those of the parts of a module that are the map to its queries."""
        return [part for part in parts if part == self.first or (self.fused and not self.whole and self.first in part)]

    def fits(self, module: nn.Module, parts: Collection[str]) -> bool:
        """Whether a module with these parts is written so."""
        sizes = [size for size in (self.heads, self.width, self.inner) if size]
        numbers = all(isinstance(getattr(module, size, None), int) for size in sizes)
        return numbers and len(self.firsts(parts)) == 1 and (not self.classes or _name(module) in self.classes)

    def mixes(self, module: nn.Module) -> bool:
        """Whether the features of the module's heads can be mixed into heads of another width, or several into one."""
        norms = (getattr(module, part, None) for part in (*self.queries, *self.keys))
        plain = all(norm is None or isinstance(norm, nn.Identity) for norm in norms)
        return _name(module) in self.mixable and plain and getattr(module, "scale_attn_weights", True)

    def width_of(self, module: nn.Module, features: int) -> float:
        """The width of a head of a module whose query heads have that many features."""
        return getattr(module, self.width) if self.width else features / getattr(module, self.heads)


DIFFUSERS = Layout(
    first="to_q",
    queries=("to_q", "add_q_proj", "norm_q", "norm_added_q", "to_q_t", "q_rms_norm", "q_rms_norm_t"),
    keys=(
        *("to_k", "to_v", "add_k_proj", "add_v_proj", "norm_k", "norm_added_k"),
        *("to_k_t", "to_v_t", "k_rms_norm", "k_rms_norm_t"),
    ),
    values=("to_v", "add_v_proj", "to_v_t"),
    out=("to_out.0", "to_out", "to_add_out", "to_out_t"),
    setting="attention_head_dim",
    heads="heads",
    whole=False,
)
"""Joint attention has maps for the text, too; those of HiDream end in _t."""
DIFFUSERS_FUSED = replace(DIFFUSERS, first="qkv", values=(), inner="inner_dim", fused=True, paired=("txt_kv_proj",))
"""The same map may write the hidden units of an MLP, after the heads (FLUX's single blocks)."""
TRANSFORMERS = Layout(
    first="q_proj",
    queries=("q_proj", "q_norm"),
    keys=("k_proj", "v_proj", "k_norm"),
    values=("v_proj",),
    out=("o_proj", "out_proj", "dense"),
    setting="head_dim",
    width="head_dim",
)
"""Llama, Mistral, Qwen, Gemma and what is written like them; out_proj: OPT, dense: Phi."""
GPT2 = Layout(
    first="c_attn",
    queries=(),
    keys=(),
    values=(),
    out=("c_proj",),
    setting="n_embd / n_head",
    width="head_dim",
    fused=True,
    classes=("transformers.GPT2Attention",),
    mixable=("transformers.GPT2Attention",),
)
TIMM = Layout(
    first="qkv",
    queries=("q_norm", "norm", "gate"),
    keys=("k_norm",),
    values=(),
    out=("proj",),
    setting="embed_dim / num_heads",
    heads="num_heads",
    fused=True,
    classes=("timm.Attention", "timm.AttentionRope"),
    mixable=("timm.Attention",),
)
"""ViT and DeiT; other classes of timm mix the heads of queries, keys and values in another order."""
DIT_SHD = Layout(
    first="qkv",
    queries=(),
    keys=(),
    values=(),
    out=("proj",),
    setting="attention_head_dim",
    heads="heads",
    fused=True,
    classes=("dit_shd.Attention", "dit_shd.BiasedAttention"),
    mixable=("dit_shd.Attention", "dit_shd.BiasedAttention"),
    tables=("rel_pos_bias.relative_position_bias_table",),
)
"""MDTv2 and DiT."""
LAYOUTS = (DIFFUSERS, DIFFUSERS_FUSED, TRANSFORMERS, GPT2, TIMM, DIT_SHD)


def layout_of(module: nn.Module, parts: Collection[str]) -> Layout | None:
    """The row of the table that a module of attention is written by, if any is.

    Args:
        module: Perhaps without weights.
        parts: The names inside of it of what has tensors, without .weight and .bias.
    """
    return next((layout for layout in LAYOUTS if layout.fits(module, parts)), None)


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__.partition('.')[0]}.{type(module).__name__}"


def is_transposed(module: nn.Module) -> bool:
    """Whether a map keeps its weight as inputs by outputs."""
    return type(module).__name__ == "Conv1D" and isinstance(getattr(module, "nf", None), int)


def is_map(module: nn.Module) -> bool:
    """Whether a module is a linear map."""
    return isinstance(module, nn.Linear) or is_transposed(module)
