"""From diffusers' DiTTransformer2DModel to DiT.

Both hold the same weights under other names and compute different functions of them: diffusers has timestep
frequencies 10000^(-i/127) in place of 10000^(-i/128), an epsilon of 1e-5 in every second norm, and copies of the
embedders in every block, which differ after training. A folder converted from the public checkpoint (such as
facebook/DiT-XL-2-256) therefore becomes the public DiT again, value for value; a model that was trained in diffusers
has no equivalent here.
"""

from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor

from dit_shd.core.errors import UserError

NOTE = (
    "the weights are as they were, the outputs are the public DiT's and not diffusers', whose timestep frequencies and "
    "an epsilon differ (right for folders that were made from the public checkpoints)"
)
"""For the user of a conversion."""
SETTINGS = {"activation_fn": "gelu-approximate", "attention_bias": True, "norm_elementwise_affine": False}
"""The public DiT in diffusers' options."""
BLOCK = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
EMBEDDERS = {
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}
ENDS = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}


def public_state(model: DiTTransformer2DModel) -> dict[str, Tensor]:
    """The weights under the public DiT's names.

    Raises:
        UserError: No public DiT is equivalent to the model.
    """
    tensors = model.state_dict()
    config = model.config
    for key, wanted in SETTINGS.items():
        if config[key] != wanted:
            raise UserError(f"DiTTransformer2DModel: {key}={config[key]!r}; the public DiT has {wanted!r}")

    def take(target: str, source: str) -> dict[str, Tensor]:
        kinds = [kind for kind in ("weight", "bias") if f"{source}.{kind}" in tensors]
        return {f"{target}.{kind}": tensors[f"{source}.{kind}"] for kind in kinds}

    positions: Any = model.pos_embed.pos_embed
    state: dict[str, Tensor] = {"pos_embed": positions}
    for target, source in ENDS.items():
        state |= take(target, source)
    for target, source in EMBEDDERS.items():
        first, *others = (take(target, f"{name}.norm1.emb.{source}") for name in _blocks(model))
        if any(not torch.equal(first[k], other[k]) for other in others for k in first):
            raise UserError(
                f"DiTTransformer2DModel: its blocks have {source.split('.')[0]}s of their own (it was trained in "
                "diffusers), which the public DiT does not; it can be a teacher as it is"
            )
        state |= first
    for i, name in enumerate(_blocks(model)):
        for target, source in BLOCK.items():
            state |= take(f"blocks.{i}.{target}", f"{name}.{source}")
        for kind in ("weight", "bias"):
            qkv = [tensors[f"{name}.attn1.to_{letter}.{kind}"] for letter in "qkv"]
            state[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(qkv)
    return state


def _blocks(model: DiTTransformer2DModel) -> list[str]:
    return [f"transformer_blocks.{i}" for i in range(len(model.transformer_blocks))]
