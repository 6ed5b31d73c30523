"""Lumina-Image 2.0 (arXiv 2503.21758): one stream of text and image tokens, grouped-query attention, Gemma 2."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.adapters import Adapter, encode_prompt

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class Lumina2(Adapter):
    """Time is 0 at the noise and 1 at the data, and the output is the velocity along it."""

    transformer = "Lumina2Transformer2DModel"
    pipelines = ("Lumina2Pipeline",)
    attention = "joint, one stream"

    def text_widths(self, settings: Mapping[str, Any]) -> tuple[int, int | None]:
        return settings["cap_feat_dim"], None

    def arguments(
        self, model: nn.Module, x: Tensor, time: Tensor, text: TextCondition, guidance: Tensor | None
    ) -> dict[str, Any]:
        condition = {"encoder_hidden_states": text.embeddings, "encoder_attention_mask": text.mask}
        return {"hidden_states": x, "timestep": 1 - time, **condition}

    def prediction(self, output: Tensor, x: Tensor) -> Tensor:
        return -output

    def encode_empty(self, pipeline: "DiffusionPipeline", tokens: int | None = None) -> TextCondition:
        """The pipeline puts its instruction before prompts and not before negative ones."""
        return self.text(encode_prompt(pipeline, [""], tokens, guided=True)[2:])
