"""How pipelines guide where their own scale does not."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def true_guidance(settings: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Arguments of a call whose guidance_scale is for distilled models alone: others need a negative prompt, too.

    Args:
        settings: The config of the transformer.
        scale: W of u + w (c - u); 1 for none.
    """
    if settings.get("guidance_embeds"):
        return {"guidance_scale": scale}
    return {"true_cfg_scale": scale, **({"negative_prompt": ""} if scale > 1 else {})}


def rescaled(combined: Tensor, conditional: Tensor, most: float = math.inf) -> Tensor:
    """The first with the norms of the second along the last axis.

    Args:
        combined: Predictions [...,n].
        conditional: Others of the same shape.
        most: The largest factor.
    """
    factor = conditional.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return combined * factor.clamp(max=most)
