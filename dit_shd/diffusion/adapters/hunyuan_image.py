"""HunyuanImage 2.1: joint attention in blocks of two streams, then one; Qwen 2.5 VL, and ByT5 for words in quotes.

Embeddings of both encoders are one sequence here, filled up with zeros to the wider of the two widths: ByT5's
GLYPHS tokens, all of them masked where nothing stands in quotes, then those of Qwen without the padding to 1,000 that
the pipeline has: the model masks it wherever it reads the text. Its blocks are given the prompt's own tokens first.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from dit_shd.core.errors import UserError
from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.adapters import Adapter, settings_of
from dit_shd.diffusion.text_rows import SortedTextRows, TextRows

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

GLYPHS = 128
"""Tokens that the pipeline makes of the words in quotes."""


class HunyuanImage(Adapter):
    """Time is 1000 times the share of noise, the output the velocity to noise.

    Guidance is that of u + w (c - u); its pipeline's own guider changes to another rule after some steps.
    """

    transformer = "HunyuanImageTransformer2DModel"
    pipelines = ("HunyuanImagePipeline",)
    guidance = 3.25
    example_tokens = GLYPHS + 256
    example_side = 64
    text_alone = ("context_embedder.*",)

    def multiple(self, settings: Mapping[str, Any]) -> int:
        return settings["patch_size"][-1]

    def text_rows(self, settings: Mapping[str, Any]) -> TextRows:
        both = settings["text_embed_2_dim"] is not None
        return SortedTextRows(self.multiple(settings), text_alone=self.text_alone, first=GLYPHS, both=both)

    def text_widths(self, settings: Mapping[str, Any]) -> tuple[int, int | None]:
        return max(settings["text_embed_dim"], settings["text_embed_2_dim"] or 0), None

    def arguments(
        self, model: nn.Module, x: Tensor, time: Tensor, text: TextCondition, guidance: Tensor | None
    ) -> dict[str, Any]:
        settings = settings_of(model)
        if settings.get("use_meanflow"):
            raise UserError(
                "a transformer with use_meanflow, as the distilled HunyuanImage, is given the next of its few steps: "
                "not supported; wanted the one that is not distilled"
            )
        # Fewer tokens are of no data, and which of them are a prompt's is not known without numbers.
        glyphs = GLYPHS if text.tokens > GLYPHS and not x.is_meta else 0
        arguments = {
            "hidden_states": x,
            "timestep": (1000 * time).to(x.dtype),
            "guidance": None if guidance is None else (1000 * guidance).to(x.dtype),
            "encoder_hidden_states": text.embeddings[:, glyphs:, : settings["text_embed_dim"]],
            "encoder_attention_mask": text.mask[:, glyphs:],
        }
        width = settings["text_embed_2_dim"]
        if glyphs and width is not None:
            arguments["encoder_hidden_states_2"] = text.embeddings[:, :glyphs, :width]
            arguments["encoder_attention_mask_2"] = text.mask[:, :glyphs]
        return arguments

    def guidance_arguments(self, settings: Mapping[str, Any], scale: float) -> dict[str, Any]:
        return {"distilled_guidance_scale": scale} if settings.get("guidance_embeds") else {}

    def guide(self, pipeline: "DiffusionPipeline", scale: float) -> dict[str, Any]:
        """Its call has no scale: the pipeline is given a guider of that one."""
        from diffusers import ClassifierFreeGuidance

        whole: Any = pipeline
        if not settings_of(whole.transformer).get("guidance_embeds"):
            whole.guider, whole.ocr_guider = ClassifierFreeGuidance(guidance_scale=scale), None
        return super().guide(pipeline, scale)

    def framed(self, pipeline: "DiffusionPipeline", prompts: Sequence[str]) -> list[str]:
        whole: Any = pipeline
        return [whole.prompt_template_encode.format(prompt) for prompt in prompts]

    def limits(self, pipeline: "DiffusionPipeline", tokens: int | None = None) -> dict[str, int]:
        """Qwen's, besides the first tokens of its template, which the transformer is not given."""
        whole: Any = pipeline
        return {"tokenizer": whole.tokenizer_max_length + whole.prompt_template_encode_start_idx}

    def image_tokens(self, model: nn.Module, layer: str, arguments: Mapping[str, Any]) -> range | None:
        """Before the text; the refiner before them is of text alone."""
        if layer.startswith("context_embedder"):
            return None
        y, x = (side // self.multiple(settings_of(model)) for side in arguments["hidden_states"].shape[-2:])
        return range(y * x)

    def text(self, encoded: Sequence[Any]) -> TextCondition:
        embeddings, mask, glyphs, glyph_mask = encoded
        longest = int(mask.sum(1).max())
        parts = glyphs.to(embeddings), embeddings[:, :longest]
        width = max(part.shape[-1] for part in parts)
        filled = [pad(part, (0, width - part.shape[-1])) for part in parts]
        return TextCondition.of(torch.cat(filled, dim=1), torch.cat([glyph_mask, mask[:, :longest]], dim=1))
