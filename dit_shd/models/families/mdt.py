"""MDTv2, the masked diffusion transformer (arXiv 2303.14389), as a diffusers model.

Its state dict is that of the public checkpoints (sail-sg/MDT) without their index buffers. MDTv2 has the data flow.
"""

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from dit_shd.attention.bias import Bias, DenseBias
from dit_shd.attention.relative_bias import RelativeBias
from dit_shd.core.errors import UserError
from dit_shd.models import public_checkpoints
from dit_shd.models.layers import FinalLayer, sincos_2d
from dit_shd.models.prediction import NOISE, checked_prediction
from dit_shd.models.transformer import Attention, Block, LatentTransformer

KEPT_MIB = 1024
"""Memory limit of `kept_biases` in MiB; XL/2 at 256 tokens takes 116."""


class RelativePositionBias(nn.Module):
    """Learnable table of RelativeBias for a grid of w x w tokens."""

    def __init__(self, window: int, heads: int):
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2 + 3, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.window = window
        self.kept: Bias | None = None
        """The bias of all tokens, computed once, inside `kept_biases`."""

    def forward(self, code: Tensor | None) -> Bias:
        """The bias of the tokens with these codes [b,n]; of all tokens for None."""
        if code is None and self.kept is not None and not torch.is_grad_enabled():
            return self.kept
        return RelativeBias(self.relative_position_bias_table, self.window, code)


@contextmanager
def kept_biases(model: nn.Module, dtype: torch.dtype) -> Generator[None]:
    """Compute the biases of plain passes once for all forwards without gradients in the block.

    They take h n n numbers a layer; biases of more than KEPT_MIB are added tile by tile as without this.

    Args:
        model: Whose biases are kept.
        dtype: Of the queries, which under autocast is not the table's.
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


class BiasedAttention(Attention):
    """Attention with MDT's relative position bias."""

    def __init__(self, width: int, heads: int, window: int):
        super().__init__(width, heads)
        self.rel_pos_bias = RelativePositionBias(window, heads)

    def bias(self, code: Tensor | None) -> Bias:
        return self.rel_pos_bias(code)


class MDTBlock(Block):
    """A block with MDT's attention and, for `skip`, a long skip connection."""

    def __init__(self, width: int, heads: int, window: int, mlp_ratio: float, skip: bool = False):
        super().__init__(width, BiasedAttention(width, heads, window), mlp_ratio)
        self.skip_linear = nn.Linear(2 * width, width) if skip else None

    def forward(self, x: Tensor, condition: Tensor, code: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        """Tokens [b,n,e] from tokens, the condition [b,e], codes of the tokens [b,n] and the skipped tokens [b,n,e]."""
        if self.skip_linear is not None:
            joined = self.skip_linear(torch.cat([x, skip], dim=-1))  # type: ignore[list-item]
            x = joined.to(x.dtype)  # under autocast tokens keep float32, as in the blocks without skip
        return super().forward(x, condition, code)


class MDTv2(LatentTransformer):
    """Masked Diffusion Transformer v2.

    patches + pos_embed -> en_inblocks (outputs pushed on a stack) -> en_outblocks (popped as long skips)
    -> + decoder_pos_embed -> de_blocks (skip: the embedded patches) -> final layer.
    In the masked pass the encoder runs on the kept tokens, and one side block fills in the others before the decoder.

    Args:
        sample_size: Height and width of the latents.
        patch_size: Height and width of a token's patch, p.
        in_channels: Channels of the latents.
        num_layers: Blocks of encoder and decoder together; num_layers - decode_layer must be even.
        num_attention_heads: Heads of a block.
        attention_head_dim: Head width d; heads times d is the width e.
        decode_layer: Blocks of the decoder.
        num_classes: Number of classes; label `num_classes` means no class.
        mlp_ratio: Width of the MLP over e.
        learn_sigma: Whether to predict the variance too (the output has 2c channels).
        class_names: Of each class, "" for a class without a name, None for a class that was not trained.
        prediction: What the output is (dit_shd/models/prediction.py): noise, or a velocity and its convention.
    """

    SIZES: ClassVar = {  # table 1 of the paper; decode_layer: 4 in the public XL/2, 6 in the public S/2 script
        "S/2": dict(num_layers=12, num_attention_heads=6, attention_head_dim=64, decode_layer=6),
        "B/2": dict(num_layers=12, num_attention_heads=12, attention_head_dim=64, decode_layer=6),
        "L/2": dict(num_layers=24, num_attention_heads=16, attention_head_dim=64, decode_layer=6),
        "XL/2": dict(num_layers=28, num_attention_heads=16, attention_head_dim=72, decode_layer=4),
    }

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
        class_names: list[str | None] | None = None,
        prediction: str = NOISE,
    ):
        super().__init__()
        width = num_attention_heads * attention_head_dim
        self.check_shape(sample_size, patch_size, num_layers, num_attention_heads, width, mlp_ratio)
        self.check_names(class_names, num_classes)
        checked_prediction(prediction, type(self).__name__)
        _check_depth(num_layers, decode_layer)
        window = sample_size // patch_size
        half = (num_layers - decode_layer) // 2

        def blocks(count: int, skip: bool = False) -> nn.ModuleList:
            return nn.ModuleList(MDTBlock(width, num_attention_heads, window, mlp_ratio, skip) for _ in range(count))

        self.embedders(sample_size, patch_size, in_channels, width, num_classes)
        self.pos_embed = nn.Parameter(sincos_2d(width, window))
        self.decoder_pos_embed = nn.Parameter(sincos_2d(width, window))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.en_inblocks = blocks(half)
        self.en_outblocks = blocks(half, skip=True)
        self.de_blocks = blocks(decode_layer, skip=True)
        self.sideblocks = blocks(1)
        self.final_layer = FinalLayer(width, patch_size, in_channels * (2 if learn_sigma else 1))
        self.register_buffer("code", RelativeBias.codes(window), persistent=False)
        self.initialise()
        nn.init.normal_(self.mask_token, std=0.02)

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
            hidden_states: Noisy latents [b,c,y,x].
            timestep: [b], or one number.
            class_labels: [b].
            keep: Indices [b,kept] of the tokens of the masked pass; None for the plain pass.
            return_dict: Whether to return a record of diffusers instead of a tuple.

        Returns:
            `sample` [b, c or 2c, y, x].
        """
        embedded, condition = self.embed(hidden_states, timestep, class_labels)
        x, code = (embedded, None) if keep is None else (take(embedded, keep), self.code[keep])

        stack = []
        for block in self.en_inblocks:
            x = self.run(block, x, condition, code)
            stack.append(x)
        for block in self.en_outblocks:
            x = self.run(block, x, condition, code, stack.pop())
        x = x + self.decoder_pos_embed if keep is None else self._interpolate(x, condition, keep)
        for block in self.de_blocks:
            x = self.run(block, x, condition, None, embedded)
        return self.result(x, condition, return_dict)

    def _interpolate(self, kept: Tensor, condition: Tensor, keep: Tensor) -> Tensor:
        """The side interpolator: mask tokens in place of the missing tokens, which one block fills in."""
        b, _, e = kept.shape
        index = keep[..., None].expand(-1, -1, e)
        full = self.mask_token.to(kept.dtype).expand(b, self.tokens, e).scatter(1, index, kept) + self.decoder_pos_embed
        visible = torch.zeros(b, self.tokens, 1, dtype=torch.bool, device=kept.device).scatter(1, keep[..., None], True)
        return torch.where(visible, full, self.run(self.sideblocks[0], full, condition, None))

    @classmethod
    def is_public(cls, state: Mapping[str, Tensor]) -> bool:
        return "sideblocks.0.adaLN_modulation.1.weight" in state

    @classmethod
    def public_config(cls, state: Mapping[str, Tensor], heads: int | None = None) -> dict[str, Any]:
        config, width = public_checkpoints.shapes(cls.__name__, state, "sideblocks.0")
        table_heads = public_checkpoints.size(
            cls.__name__, state, "sideblocks.0.attn.rel_pos_bias.relative_position_bias_table", 1
        )
        if heads not in (None, table_heads):
            raise UserError(f"heads: this MDTv2 has {table_heads} by its tensors; found heads={heads}")
        decode = public_checkpoints.count(state, "de_blocks")
        return {
            **config,
            "num_layers": public_checkpoints.count(state, "en_inblocks")
            + public_checkpoints.count(state, "en_outblocks")
            + decode,
            "num_attention_heads": table_heads,
            "attention_head_dim": width // table_heads,
            "decode_layer": decode,
        }

    @classmethod
    def parameters_of(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: v for k, v in state.items() if not k.endswith("relative_position_index")}

    def to_public(self) -> dict[str, Tensor]:
        """The state dict of the public layout, index buffers included."""
        state = dict(self.state_dict())
        window = math.isqrt(self.tokens)
        code = self.code.long()
        index = code[:, None] - code[None, :] + (window - 1) * (2 * window - 1) + (window - 1)
        tables = [k for k in state if k.endswith("relative_position_bias_table")]
        return state | {k.replace("bias_table", "index"): index for k in tables}


def take(x: Tensor, keep: Tensor) -> Tensor:
    """The tokens of x [b,n,e] at the indices `keep` [b,kept]."""
    return x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))


def _check_depth(num_layers: int, decode_layer: int) -> None:
    if not 0 < decode_layer <= num_layers or (num_layers - decode_layer) % 2:
        raise UserError(
            f"MDTv2: num_layers - decode_layer must be even and decode_layer in 1..num_layers, "
            f"found num_layers {num_layers} and decode_layer {decode_layer}"
        )
