"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206): joint attention, three text encoders, padding taken for text."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.adapters import Adapter

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class SD3(Adapter):
    """Time is 1000 times the share of noise, the output the velocity to noise."""

    transformer = "SD3Transformer2DModel"
    pipelines = ("StableDiffusion3Pipeline",)
    example_tokens = 333
    most_tokens = 512
    mask_at, pooled_at = None, 2

    def text_widths(self, settings: Mapping[str, Any]) -> tuple[int, int | None]:
        return settings["joint_attention_dim"], settings["pooled_projection_dim"]

    def arguments(
        self, model: nn.Module, x: Tensor, time: Tensor, text: TextCondition, guidance: Tensor | None
    ) -> dict[str, Any]:
        condition = {"encoder_hidden_states": text.embeddings, "pooled_projections": text.pooled}
        return {"hidden_states": x, "timestep": 1000 * time, **condition}

    def limits(self, pipeline: "DiffusionPipeline", tokens: int | None = None) -> dict[str, int]:
        """CLIP's and, where it is there, T5's."""
        t5 = {"tokenizer_3": tokens or 256} if pipeline.text_encoder_3 is not None else {}
        return {"tokenizer": pipeline.tokenizer_max_length, **t5}
