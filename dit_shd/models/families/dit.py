"""DiT, the diffusion transformer (arXiv 2212.09748), as a diffusers model.

diffusers' own DiTTransformer2DModel is another model: see dit_shd/models/diffusers_dit.py.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from dit_shd.core.errors import UserError
from dit_shd.models import public_checkpoints
from dit_shd.models.layers import FinalLayer, sincos_2d
from dit_shd.models.prediction import NOISE, checked_prediction
from dit_shd.models.transformer import Attention, Block, LatentTransformer

SHAPES: dict[str, dict[str, int]] = {
    "S": dict(num_layers=12, num_attention_heads=6, attention_head_dim=64),
    "B": dict(num_layers=12, num_attention_heads=12, attention_head_dim=64),
    "L": dict(num_layers=24, num_attention_heads=16, attention_head_dim=64),
    "XL": dict(num_layers=28, num_attention_heads=16, attention_head_dim=72),
}
"""Table 1 of the paper."""
USUAL_HEADS = {s["num_attention_heads"] * s["attention_head_dim"]: s["num_attention_heads"] for s in SHAPES.values()}
"""Heads by width."""


class DiT(LatentTransformer):
    """Diffusion Transformer with adaLN-Zero.

    patches + pos_embed (fixed: sines and cosines) -> blocks -> final layer. It has no masked pass.

    Args:
        sample_size: Height and width of the latents.
        patch_size: Height and width of a token's patch, p.
        in_channels: Channels of the latents.
        num_layers: Number of blocks.
        num_attention_heads: Heads of a block.
        attention_head_dim: Head width d; heads times d is the width e.
        num_classes: Number of classes; label `num_classes` means no class.
        mlp_ratio: Width of the MLP over e.
        learn_sigma: Whether to predict the variance too (the output has 2c channels).
        class_names: Of each class, "" for a class without a name, None for a class that was not trained.
        prediction: What the output is (dit_shd/models/prediction.py): noise, or a velocity and its convention.
    """

    SIZES: ClassVar = {f"{name}/{p}": {**shape, "patch_size": p} for name, shape in SHAPES.items() for p in (2, 4, 8)}

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        num_layers: int = 12,
        num_attention_heads: int = 6,
        attention_head_dim: int = 64,
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
        self.embedders(sample_size, patch_size, in_channels, width, num_classes)
        self.pos_embed = nn.Parameter(sincos_2d(width, sample_size // patch_size), requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(width, Attention(width, num_attention_heads), mlp_ratio) for _ in range(num_layers)
        )
        self.final_layer = FinalLayer(width, patch_size, in_channels * (2 if learn_sigma else 1))
        self.initialise()

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool = True
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict noise (and variance).

        Args:
            hidden_states: Noisy latents [b,c,y,x].
            timestep: [b], or one number.
            class_labels: [b].
            return_dict: Whether to return a record of diffusers instead of a tuple.

        Returns:
            `sample` [b, c or 2c, y, x].
        """
        x, condition = self.embed(hidden_states, timestep, class_labels)
        for block in self.blocks:
            x = self.run(block, x, condition)
        return self.result(x, condition, return_dict)

    @classmethod
    def is_public(cls, state: Mapping[str, Tensor]) -> bool:
        return "blocks.0.adaLN_modulation.1.weight" in state

    @classmethod
    def public_config(cls, state: Mapping[str, Tensor], heads: int | None = None) -> dict[str, Any]:
        config, width = public_checkpoints.shapes(cls.__name__, state, "blocks.0")
        heads = USUAL_HEADS.get(width) if heads is None else heads
        if heads is None:
            raise UserError(
                f"DiT: how many heads it has is not in its tensors, and {width} is none of the public widths "
                f"({', '.join(map(str, USUAL_HEADS))}); give heads=N"
            )
        if heads < 1 or width % heads:
            raise UserError(f"heads: wanted a divisor of the width {width}, found {heads}")
        layers = public_checkpoints.count(state, "blocks")
        return {**config, "num_layers": layers, "num_attention_heads": heads, "attention_head_dim": width // heads}
