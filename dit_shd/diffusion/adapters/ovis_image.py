"""Ovis-Image: FLUX.1's blocks with gated units, prompts of Qwen3 behind an instruction that the model is not given.

The embeddings of padding are zeros, of which the model makes the same token each: it takes them for text, up to the
number of tokens that the pipeline's call names.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion import packing
from dit_shd.diffusion.adapters import Adapter
from dit_shd.diffusion.prompt_texts import Template, of_chat

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class OvisImage(packing.Packed, Adapter):
    """Time is the share of noise, the output the velocity to noise of each patch."""

    transformer = "OvisImageTransformer2DModel"
    pipelines = ("OvisImagePipeline",)
    most_tokens = 256
    example_tokens = 256
    mask_at = None

    def arguments(
        self, model: nn.Module, x: Tensor, time: Tensor, text: TextCondition, guidance: Tensor | None
    ) -> dict[str, Any]:
        words = torch.arange(text.tokens, device=x.device).to(x.dtype)
        return {
            "hidden_states": packing.pack(x),
            "timestep": time.to(x.dtype),
            "encoder_hidden_states": text.embeddings,
            "img_ids": packing.places(x),
            "txt_ids": torch.stack([torch.zeros_like(words), words, words], dim=-1),
        }

    def framed(self, pipeline: "DiffusionPipeline", prompts: Sequence[str]) -> list[str]:
        whole: Any = pipeline
        chats = [[{"role": "user", "content": whole.system_prompt + prompt}] for prompt in prompts]
        return of_chat(pipeline, chats, add_generation_prompt=True, enable_thinking=False)

    def limits(self, pipeline: "DiffusionPipeline", tokens: int | None = None) -> dict[str, int]:
        """Besides the first tokens of its template, which the transformer is not given."""
        whole: Any = pipeline
        return {name: limit + whole.user_prompt_begin_id for name, limit in super().limits(pipeline, tokens).items()}

    def template(self, pipeline: "DiffusionPipeline", prompt: str, call: Mapping[str, Any]) -> Template | None:
        whole: Any = pipeline
        (text,) = self.framed(pipeline, [prompt])
        before, instruction, _ = text.partition(whole.system_prompt)
        return Template(before + instruction, prompt, whole.user_prompt_begin_id) if instruction else None
