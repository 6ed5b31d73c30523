"""FLUX.1 dev and schnell: packed latents, rotary places; dev is guidance-distilled and is given the scale."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion import packing
from dit_shd.diffusion.adapters import Adapter
from dit_shd.diffusion.pipeline_guidance import true_guidance

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class Flux(packing.Packed, Adapter):
    """Time is the share of noise, the output the velocity to noise of each patch."""

    transformer = "FluxTransformer2DModel"
    pipelines = ("FluxPipeline",)
    guidance = 3.5
    most_tokens = 512
    mask_at, pooled_at = None, 1

    def text_widths(self, settings: Mapping[str, Any]) -> tuple[int, int | None]:
        return settings["joint_attention_dim"], settings["pooled_projection_dim"]

    def arguments(
        self, model: nn.Module, x: Tensor, time: Tensor, text: TextCondition, guidance: Tensor | None
    ) -> dict[str, Any]:
        return {
            "hidden_states": packing.pack(x),
            "timestep": time.to(x.dtype),
            "guidance": guidance,
            "encoder_hidden_states": text.embeddings,
            "pooled_projections": text.pooled,
            "img_ids": packing.places(x),
            "txt_ids": x.new_zeros(text.tokens, 3),
        }

    def guidance_arguments(self, settings: Mapping[str, Any], scale: float) -> dict[str, Any]:
        return true_guidance(settings, scale)

    def limits(self, pipeline: "DiffusionPipeline", tokens: int | None = None) -> dict[str, int]:
        return {"tokenizer_2": tokens or 512}
