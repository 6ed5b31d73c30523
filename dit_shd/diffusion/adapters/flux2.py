"""FLUX.2 dev and klein: FLUX.1's blocks with latents that are tokens as they are, and places of four axes."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.adapters import Adapter
from dit_shd.diffusion.prompt_texts import of_chat

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class Flux2(Adapter):
    """Time is the share of noise, the output the velocity to noise of each token."""

    transformer = "Flux2Transformer2DModel"
    pipelines = ("Flux2Pipeline", "Flux2KleinPipeline")
    guidance = 3.5
    example_tokens = 512
    example_side = 64
    mask_at = None

    def text_widths(self, settings: Mapping[str, Any]) -> tuple[int, int | None]:
        return settings["joint_attention_dim"], None

    def arguments(
        self, model: nn.Module, x: Tensor, time: Tensor, text: TextCondition, guidance: Tensor | None
    ) -> dict[str, Any]:
        height, width = x.shape[-2:]
        return {
            "hidden_states": x.flatten(2).transpose(1, 2),
            "timestep": time.to(x.dtype),
            "guidance": guidance,
            "encoder_hidden_states": text.embeddings,
            "img_ids": _places(x, (1, height, width, 1)),
            "txt_ids": _places(x, (1, 1, 1, text.tokens)),
        }

    def prediction(self, output: Tensor, x: Tensor) -> Tensor:
        return output.transpose(1, 2).unflatten(2, x.shape[-2:])

    def shift(self, scheduler: Mapping[str, Any], tokens: int) -> float | None:
        """Of the tokens and, between two lines, of the pipeline's 50 steps; a static scheduler's is in its config."""
        if not scheduler.get("use_dynamic_shifting"):
            return None
        of_200 = 0.00016927 * tokens + 0.45666666
        of_10 = 8.73809524e-05 * tokens + 1.89833333
        mu = of_200 if tokens > 4300 else of_10 + (of_200 - of_10) * (50 - 10) / 190
        return math.exp(mu)

    def framed(self, pipeline: "DiffusionPipeline", prompts: Sequence[str]) -> list[str]:
        whole: Any = pipeline
        instruction = getattr(whole, "system_message", None)  # of dev
        if instruction is None:
            chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
            return of_chat(pipeline, chats, add_generation_prompt=True, enable_thinking=False)
        from diffusers.pipelines.flux2.pipeline_flux2 import format_input

        return of_chat(pipeline, format_input(list(prompts), instruction), add_generation_prompt=False)


def _places(x: Tensor, lengths: tuple[int, int, int, int]) -> Tensor:
    """Frame, row, column and word of every token [n,4]."""
    return torch.cartesian_prod(*(torch.arange(length, device=x.device) for length in lengths))
