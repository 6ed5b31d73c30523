"""Sana (arXiv 2410.10629): linear self-attention, softmax cross-attention to Gemma 2, an autoencoder of 32 x 32."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dit_shd.core.errors import UserError
from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.adapters import Adapter, settings_of
from dit_shd.diffusion.prompt_encoding import encode_prompt
from dit_shd.diffusion.prompt_texts import Template

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

INSTRUCTION = "complex_human_instruction"
"""The argument of the pipeline's call that has it."""


class Sana(Adapter):
    """Time is 1000 times the share of noise (times timestep_scale), the output the velocity to noise."""

    transformer = "SanaTransformer2DModel"
    pipelines = ("SanaPipeline",)
    example_tokens = 300
    attention = "self (linear: features and output alone), and cross to text"
    cross_attention = ("*.attn2",)

    def text_widths(self, settings: Mapping[str, Any]) -> tuple[int, int | None]:
        return settings["caption_channels"], None

    def arguments(
        self, model: nn.Module, x: Tensor, time: Tensor, text: TextCondition, guidance: Tensor | None
    ) -> dict[str, Any]:
        if settings_of(model).get("guidance_embeds"):
            raise UserError("a transformer with guidance_embeds is of SanaSprintPipeline: not supported")
        return {
            "hidden_states": x,
            "timestep": 1000 * time * settings_of(model).get("timestep_scale", 1.0),
            "encoder_hidden_states": text.embeddings,
            "encoder_attention_mask": text.mask.to(x.dtype),
        }

    def encode_empty(self, pipeline: "DiffusionPipeline", tokens: int | None = None) -> TextCondition:
        """The pipeline puts its instruction before prompts and not before negative ones."""
        return self.text(encode_prompt(pipeline, [""], tokens, guided=True)[2:])

    def template(self, pipeline: "DiffusionPipeline", prompt: str, call: Mapping[str, Any]) -> Template | None:
        """The instruction's first token is kept, and as many of its last as fill the limit."""
        if call.get("clean_caption"):
            return None  # it may be any other text then
        default = inspect.signature(type(pipeline).__call__).parameters[INSTRUCTION].default
        instruction = "\n".join(call.get(INSTRUCTION, default) or [])
        tokenizer: Any = getattr(pipeline, "tokenizer")  # noqa: B009
        dropped = len(tokenizer.encode(instruction)) - 2 if instruction else 0
        return Template(instruction, prompt.lower().strip(), dropped)
