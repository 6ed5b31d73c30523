"""Bria 3.2: FLUX.1's blocks, prompts of T5 filled up with zeros, no prompt that is zeros alone.

The model takes the zeros for text, up to the number of tokens that the pipeline's call names. Its pipeline also runs
with schedulers of DDPM, under which the same class predicts noise; here it is asked by rectified flow.
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion import packing
from dit_shd.diffusion.adapters import Adapter
from dit_shd.diffusion.prompt_encoding import encode_prompt

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class Bria(packing.Packed, Adapter):
    """Time is 1000 times the share of noise, the output the velocity to noise of each patch."""

    transformer = "BriaTransformer2DModel"
    pipelines = ("BriaPipeline",)
    most_tokens = 512
    example_tokens = 128
    mask_at = None

    def arguments(
        self, model: nn.Module, x: Tensor, time: Tensor, text: TextCondition, guidance: Tensor | None
    ) -> dict[str, Any]:
        return {
            "hidden_states": packing.pack(x),
            "timestep": 1000 * time,
            "encoder_hidden_states": text.embeddings,
            "img_ids": packing.places(x),
            "txt_ids": x.new_zeros(text.tokens, 3),
        }

    def encode_empty(self, pipeline: "DiffusionPipeline", tokens: int | None = None) -> TextCondition:
        """Zeros, and not the embeddings of an empty text."""
        return self.text(encode_prompt(pipeline, [""], tokens, guided=True)[1:])
