"""Qwen-Image (arXiv 2508.02324): FLUX's packed latents, joint attention to the prompt's own tokens alone."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dit_shd.core.errors import UserError
from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion import packing
from dit_shd.diffusion.adapters import Adapter, settings_of
from dit_shd.diffusion.pipeline_guidance import rescaled, true_guidance

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class QwenImage(packing.Packed, Adapter):
    """Time is the share of noise, the output the velocity to noise of each patch."""

    transformer = "QwenImageTransformer2DModel"
    pipelines = ("QwenImagePipeline",)
    guidance = 1.0
    most_tokens = 1024
    example_tokens = 256

    def framed(self, pipeline: "DiffusionPipeline", prompts: Sequence[str]) -> list[str]:
        whole: Any = pipeline
        return [whole.prompt_template_encode.format(prompt) for prompt in prompts]

    def limits(self, pipeline: "DiffusionPipeline", tokens: int | None = None) -> dict[str, int]:
        """Besides the first tokens of its template, which the transformer is not given."""
        whole: Any = pipeline
        dropped = whole.prompt_template_encode_start_idx
        return {name: limit + dropped for name, limit in super().limits(pipeline, tokens).items()}

    def arguments(
        self, model: nn.Module, x: Tensor, time: Tensor, text: TextCondition, guidance: Tensor | None
    ) -> dict[str, Any]:
        if settings_of(model).get("use_additional_t_cond"):
            raise UserError("a transformer with use_additional_t_cond is of QwenImageLayeredPipeline: not supported")
        height, width = (side // packing.SIDE for side in x.shape[-2:])
        return {
            "hidden_states": packing.pack(x),
            "timestep": time.to(x.dtype),
            "guidance": guidance,
            "encoder_hidden_states": text.embeddings,
            "encoder_hidden_states_mask": text.mask,
            "img_shapes": [[(1, height, width)]] * len(x),
        }

    def guidance_arguments(self, settings: Mapping[str, Any], scale: float) -> dict[str, Any]:
        return true_guidance(settings, scale)

    def guided(self, combined: Tensor, conditional: Tensor) -> Tensor:
        """With the norm of the conditional prediction in each of its tokens."""
        return packing.unpack(rescaled(packing.pack(combined), packing.pack(conditional)), combined)
