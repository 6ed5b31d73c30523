"""MDTv2, the masked diffusion transformer (arXiv 2303.14389), as a diffusers model.

Parameters carry the names of the public checkpoints (sail-sg/MDT), so reading and writing those is a matter of the
index buffers only. See MDTv2 for the data flow.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from timm.layers import PatchEmbed
from torch import Tensor, nn

from dit_shd.attention import Bias, Capture, DenseBias, RelativeBias, attend
from dit_shd.attention.recording import Recorder
from dit_shd.errors import UserError
from dit_shd.models import _public
from dit_shd.models._parts import FeedForward, FinalLayer, LabelEmbedder, TimestepEmbedder, modulate, sincos_2d

SIZES: dict[str, dict[str, int]] = {
    "S/2": dict(num_layers=12, num_attention_heads=6, attention_head_dim=64, decode_layer=6),
    "B/2": dict(num_layers=12, num_attention_heads=12, attention_head_dim=64, decode_layer=6),
    "L/2": dict(num_layers=24, num_attention_heads=16, attention_head_dim=64, decode_layer=6),
    "XL/2": dict(num_layers=28, num_attention_heads=16, attention_head_dim=72, decode_layer=4),
}
"""The sizes of the paper (table 1; patch 2). decode_layer: 4 in the public XL/2, 6 in the public S/2 script."""

KEPT_MIB = 1024
"""What `kept_biases` may hold, in MiB; XL/2 at 256 tokens takes 116."""


class RelativePositionBias(nn.Module):
    """The learnable table of RelativeBias for a w x w grid."""

    def __init__(self, window: int, heads: int):
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2 + 3, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.window = window
        self.kept: Bias | None = None
        """The bias of all tokens, computed once, inside `kept_biases`."""

    def forward(self, code: Tensor | None) -> Bias:
        if code is None and self.kept is not None:
            return self.kept
        return RelativeBias(self.relative_position_bias_table, self.window, code)


@contextmanager
def kept_biases(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Compute the biases of plain passes once for all forwards of the block: no gradient, and no change of weights.

    Together they take h n n numbers a layer; where that is more than KEPT_MIB they stay what is added tile by tile.

    Args:
        dtype: of the queries, which under autocast is not the table's.
    """
    modules = [m for m in model.modules() if isinstance(m, RelativePositionBias)]
    size = sum(m.window**4 * m.relative_position_bias_table.shape[1] for m in modules) * dtype.itemsize
    before = [m.kept for m in modules]
    for m in modules:
        bias = RelativeBias(m.relative_position_bias_table.detach(), m.window)
        m.kept = bias if size > KEPT_MIB * 2**20 else DenseBias(bias.rows(slice(None)).to(dtype))
    try:
        yield
    finally:
        for m, old in zip(modules, before):
            m.kept = old


class Attention(nn.Module):
    """Multi-head self-attention with MDT's relative position bias; hands its Capture to `recorder`, if there is one."""

    recorder: Recorder | None = None

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_bias = RelativePositionBias(window, heads)

    def forward(self, x: Tensor, code: Tensor | None) -> Tensor:
        b, n, e = x.shape
        query, key, value = (y.view(b, n, self.heads, -1).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        bias = self.rel_pos_bias(code)
        scale = query.shape[-1] ** -0.5
        mixed = attend(query, key, value, scale, bias)
        if self.recorder is not None:
            out = self.proj.weight.t().unflatten(0, (self.heads, -1))
            self.recorder(Capture(query, key, value, scale, bias, out=out, mixed=mixed))
        return self.proj(mixed.transpose(1, 2).reshape(b, n, e))


class Block(nn.Module):
    """A transformer block conditioned by adaLN-Zero (DiT, arXiv 2212.09748), with an optional long skip."""

    def __init__(self, width: int, heads: int, window: int, mlp_ratio: float, skip: bool = False):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads, window)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = FeedForward(width, mlp_ratio)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.skip_linear = nn.Linear(2 * width, width) if skip else None

    def forward(self, x: Tensor, condition: Tensor, code: Tensor | None, skip: Tensor | None = None) -> Tensor:
        if self.skip_linear is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1))  # type: ignore[list-item]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(condition)[:, None].chunk(6, dim=-1)
        x = torch.addcmul(x, gate_a, self.attn(modulate(self.norm1(x), shift_a, scale_a), code))
        return torch.addcmul(x, gate_m, self.mlp(modulate(self.norm2(x), shift_m, scale_m)))


class MDTv2(ModelMixin, ConfigMixin):
    """Masked Diffusion Transformer v2.

    patches + pos_embed -> en_inblocks (outputs pushed on a stack) -> en_outblocks (popped as long skips)
    -> + decoder_pos_embed -> de_blocks (skip: the embedded patches) -> final layer.
    In the masked pass the encoder sees the kept tokens only, and one side block fills in the others before the decoder.

    Args:
        sample_size: latent height and width. patch_size: p. in_channels: latent channels.
        num_layers: encoder and decoder blocks together; num_layers - decode_layer must be even.
        num_attention_heads, attention_head_dim: their product is the width e.
        num_classes: class `num_classes` means no label.
        learn_sigma: also predict the variance (twice the channels come out).
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        num_layers: int = 12,
        num_attention_heads: int = 6,
        attention_head_dim: int = 64,
        decode_layer: int = 6,
        num_classes: int = 1000,
        mlp_ratio: float = 4.0,
        learn_sigma: bool = True,
    ):
        super().__init__()
        width = num_attention_heads * attention_head_dim
        _check_shape(sample_size, patch_size, num_layers, decode_layer, width, mlp_ratio)
        self.out_channels = in_channels * (2 if learn_sigma else 1)
        window = sample_size // patch_size
        half = (num_layers - decode_layer) // 2

        def blocks(count: int, skip: bool = False) -> nn.ModuleList:
            return nn.ModuleList(Block(width, num_attention_heads, window, mlp_ratio, skip) for _ in range(count))

        self.x_embedder = PatchEmbed(sample_size, patch_size, in_channels, width)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(num_classes, width)
        self.pos_embed = nn.Parameter(sincos_2d(width, window))
        self.decoder_pos_embed = nn.Parameter(sincos_2d(width, window))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.en_inblocks = blocks(half)
        self.en_outblocks = blocks(half, skip=True)
        self.de_blocks = blocks(decode_layer, skip=True)
        self.sideblocks = blocks(1)
        self.final_layer = FinalLayer(width, patch_size, self.out_channels)
        self.register_buffer("code", RelativeBias.codes(window), persistent=False)
        self.gradient_checkpointing = False
        self._initialise()

    @classmethod
    def from_options(cls, size: str | None = None, **options: Any) -> "MDTv2":
        """Build by name ("S/2", "B/2", "L/2", "XL/2"), any keyword of the class overriding the size's own."""
        if size is not None and size not in SIZES:
            raise UserError(f"MDTv2: no size '{size}'. Sizes: {', '.join(SIZES)}")
        return cls(**{**SIZES.get(size or "", {}), **options})

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        projection = self.x_embedder.proj
        nn.init.xavier_uniform_(projection.weight.view(projection.weight.shape[0], -1))
        nn.init.zeros_(projection.bias)  # type: ignore[arg-type]
        for weight in (
            self.y_embedder.embedding_table.weight,
            self.t_embedder.mlp[0].weight,
            self.t_embedder.mlp[2].weight,
            self.mask_token,
        ):
            nn.init.normal_(weight, std=0.02)  # type: ignore[arg-type]
        zeroed = [m.adaLN_modulation[-1] for m in self.modules() if isinstance(m, (Block, FinalLayer))]
        for linear in [*zeroed, self.final_layer.linear]:
            nn.init.zeros_(linear.weight)  # type: ignore[arg-type]
            nn.init.zeros_(linear.bias)  # type: ignore[arg-type]

    @property
    def tokens(self) -> int:
        """n, the number of tokens of an unmasked pass."""
        return self.pos_embed.shape[1]

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        class_labels: Tensor,
        keep: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict noise (and variance).

        Args:
            hidden_states: noisy latents [b,c,y,x]. timestep: [b] or one number. class_labels: [b].
            keep: token indices [b,kept] of the masked pass; None is the plain pass.

        Returns:
            sample [b, c or 2c, y, x].
        """
        timestep = torch.as_tensor(timestep, device=hidden_states.device).expand(hidden_states.shape[0])
        condition = self.t_embedder(timestep) + self.y_embedder.embedding_table(class_labels)
        embedded = self.x_embedder(hidden_states) + self.pos_embed
        x, code = (embedded, None) if keep is None else (take(embedded, keep), self.code[keep])

        stack = []
        for block in self.en_inblocks:
            x = self._run(block, x, condition, code)
            stack.append(x)
        for block in self.en_outblocks:
            x = self._run(block, x, condition, code, stack.pop())
        x = x + self.decoder_pos_embed if keep is None else self._interpolate(x, condition, keep)
        for block in self.de_blocks:
            x = self._run(block, x, condition, None, embedded)
        sample = self._unpatchify(self.final_layer(x, condition))
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _run(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *inputs)  # type: ignore[misc]
        return block(*inputs)

    def _interpolate(self, kept: Tensor, condition: Tensor, keep: Tensor) -> Tensor:
        """The side interpolator: put mask tokens where tokens are missing and let one block fill them in."""
        b, _, e = kept.shape
        index = keep[..., None].expand(-1, -1, e)
        full = self.mask_token.to(kept.dtype).expand(b, self.tokens, e).scatter(1, index, kept) + self.decoder_pos_embed
        visible = torch.zeros(b, self.tokens, 1, dtype=torch.bool, device=kept.device).scatter(1, keep[..., None], True)
        return torch.where(visible, full, self._run(self.sideblocks[0], full, condition, None))

    def _unpatchify(self, patches: Tensor) -> Tensor:
        b, n, _ = patches.shape
        w, p = math.isqrt(n), self.config.patch_size  # type: ignore[attr-defined]
        grid = patches.view(b, w, w, p, p, self.out_channels)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(b, self.out_channels, w * p, w * p)

    @classmethod
    def from_public(cls, state: Mapping[str, Tensor]) -> "MDTv2":
        """A model from a public MDTv2 state dict; every size is read from the tensors.

        Raises:
            UserError: the tensors are not those of an MDTv2.
        """
        state = _public.clean(state)
        model = cls(**_public.mdt_config(state))
        _public.load_exactly(model, {k: v for k, v in state.items() if not k.endswith("relative_position_index")})
        return model

    def to_public(self) -> dict[str, Tensor]:
        """The state dict of the public layout (its index buffers included)."""
        state = dict(self.state_dict())
        window = math.isqrt(self.tokens)
        code = self.code.long()
        index = code[:, None] - code[None, :] + (window - 1) * (2 * window - 1) + (window - 1)
        tables = [k for k in state if k.endswith("relative_position_bias_table")]
        return state | {k.replace("bias_table", "index"): index for k in tables}


def take(x: Tensor, keep: Tensor) -> Tensor:
    """Tokens x[b,n,e] at the indices keep[b,kept]."""
    return x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))


def _check_shape(
    sample_size: int, patch_size: int, num_layers: int, decode_layer: int, width: int, mlp_ratio: float
) -> None:
    if min(sample_size, patch_size, num_layers, width) < 1 or mlp_ratio * width < 1:
        raise UserError(
            f"MDTv2: wanted sizes of 1 or more, found sample_size {sample_size}, patch_size {patch_size}, "
            f"num_layers {num_layers}, width {width}, mlp_ratio {mlp_ratio}"
        )
    if sample_size % patch_size:
        raise UserError(f"MDTv2: sample_size {sample_size} is not a multiple of patch_size {patch_size}")
    if not 0 < decode_layer <= num_layers or (num_layers - decode_layer) % 2:
        raise UserError(
            f"MDTv2: num_layers - decode_layer must be even and decode_layer in 1..num_layers, "
            f"found num_layers {num_layers} and decode_layer {decode_layer}"
        )
    if width % 4:
        raise UserError(f"MDTv2: the width (heads x head width) must be a multiple of 4, found {width}")
