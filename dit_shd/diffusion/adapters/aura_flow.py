"""AuraFlow: joint attention in blocks of two streams, then one stream; padding is zeros, and taken for text."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.adapters import Adapter


class AuraFlow(Adapter):
    """Time is the share of noise, the output the velocity to noise."""

    transformer = "AuraFlowTransformer2DModel"
    pipelines = ("AuraFlowPipeline",)
    mask_at = None

    def most_side(self, settings: Mapping[str, Any]) -> int | None:
        """Its config counts the positions of a whole square."""
        return math.isqrt(settings["pos_embed_max_size"]) * self.multiple(settings)

    def text_widths(self, settings: Mapping[str, Any]) -> tuple[int, int | None]:
        return settings["joint_attention_dim"], None

    def arguments(
        self, model: nn.Module, x: Tensor, time: Tensor, text: TextCondition, guidance: Tensor | None
    ) -> dict[str, Any]:
        return {"hidden_states": x, "timestep": time, "encoder_hidden_states": text.embeddings}
