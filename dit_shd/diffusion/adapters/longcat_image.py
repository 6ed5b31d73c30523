"""LongCat-Image (arXiv 2512.07584): FLUX.1's blocks, prompts of Qwen2.5-VL that are always 512 tokens long.

Padding has embeddings, and the model takes it for text. What stands between quotation marks is tokenized letter by
letter. The pipeline's call writes prompts anew by the language model first, unless enable_prompt_rewrite=False:
captions are encoded as they are, and prompts are sampled so, too.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion import packing
from dit_shd.diffusion.adapters import Adapter
from dit_shd.diffusion.pipeline_guidance import rescaled
from dit_shd.diffusion.prompt_texts import Template

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

TOKENS = 512
"""Of every prompt; places of the image begin behind them."""


class LongCatImage(packing.Packed, Adapter):
    """Time is the share of noise, the output the velocity to noise of each patch."""

    transformer = "LongCatImageTransformer2DModel"
    pipelines = ("LongCatImagePipeline",)
    example_tokens = TOKENS
    fixed_tokens = True
    mask_at = None

    def arguments(
        self, model: nn.Module, x: Tensor, time: Tensor, text: TextCondition, guidance: Tensor | None
    ) -> dict[str, Any]:
        words = torch.arange(text.tokens, device=x.device).float()
        image = packing.places(x.float())  # in float32: bfloat16 has no 513
        return {
            "hidden_states": packing.pack(x),
            "timestep": time.to(x.dtype),
            "encoder_hidden_states": text.embeddings,
            "img_ids": image + image.new_tensor([1, TOKENS, TOKENS]),
            "txt_ids": torch.stack([torch.zeros_like(words), words, words], dim=-1),
        }

    def guidance_arguments(self, settings: Mapping[str, Any], scale: float) -> dict[str, Any]:
        """The pipeline's own negative prompt is one for all prompts, which fits one prompt alone."""
        return {"guidance_scale": scale, "negative_prompt": ""}

    def guided(self, combined: Tensor, conditional: Tensor) -> Tensor:
        """With at most the norm of the conditional prediction in each of its tokens."""
        return packing.unpack(rescaled(packing.pack(combined), packing.pack(conditional), most=1.0), combined)

    def lengths(self, pipeline: "DiffusionPipeline", tokenizer: str, prompts: Sequence[str]) -> list[int]:
        whole: Any = pipeline
        return [
            sum(len(whole.tokenizer(piece, add_special_tokens=False).input_ids) for piece in _pieces(prompt))
            for prompt in prompts
        ]

    def limits(self, pipeline: "DiffusionPipeline", tokens: int | None = None) -> dict[str, int]:
        return {"tokenizer": TOKENS}

    def template(self, pipeline: "DiffusionPipeline", prompt: str, call: Mapping[str, Any]) -> Template | None:
        """The prompt alone, all else stands around its 512 tokens; not known where it is in several pieces or new."""
        is_whole = _pieces(prompt) == [prompt] and not call.get("enable_prompt_rewrite", True)
        return Template("", prompt) if is_whole else None


def _pieces(prompt: str) -> list[str]:
    """The parts of a prompt that are tokenized by themselves, as the pipeline divides it."""
    from diffusers.pipelines.longcat_image.pipeline_longcat_image import split_quotation

    parts = split_quotation(prompt)
    return [piece for part, quoted in parts for piece in (part if quoted else [part])]
