"""Z-Image (arXiv 2511.22699): one stream of image and text tokens; each sample is a list's entry of its own length."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.adapters import Adapter
from dit_shd.diffusion.prompt_texts import of_chat

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class ZImage(Adapter):
    """Time is 0 at the noise and 1 at the data, and the output is the velocity along it."""

    transformer = "ZImageTransformer2DModel"
    pipelines = ("ZImagePipeline",)
    example_tokens = 128
    attention = "joint, one stream"
    stream_multiple = 32
    text_alone = ("context_refiner.*",)

    def multiple(self, settings: Mapping[str, Any]) -> int:
        return settings["all_patch_size"][0]

    def most_side(self, settings: Mapping[str, Any]) -> int | None:
        return min(settings["axes_lens"][1:]) * self.multiple(settings)

    def most_text(self, settings: Mapping[str, Any]) -> int | None:
        """Text is padded to 32 tokens, from position 1 on, and the image's tokens take the position after it."""
        places = settings.get("axes_lens", ())[:1]
        return (places[0] - 2) // 32 * 32 if places else None

    def text_widths(self, settings: Mapping[str, Any]) -> tuple[int, int | None]:
        return settings["cap_feat_dim"], None

    def framed(self, pipeline: "DiffusionPipeline", prompts: Sequence[str]) -> list[str]:
        return of_chat(
            pipeline,
            [[{"role": "user", "content": prompt}] for prompt in prompts],
            add_generation_prompt=True,
            enable_thinking=True,
        )

    def arguments(
        self, model: nn.Module, x: Tensor, time: Tensor, text: TextCondition, guidance: Tensor | None
    ) -> dict[str, Any]:
        lengths = [text.tokens] * len(x) if text.mask.is_meta else text.mask.sum(1).tolist()
        prompts = [embeddings[:length] for embeddings, length in zip(text.embeddings, lengths)]
        return {"x": list(x[:, :, None].unbind()), "t": 1 - time, "cap_feats": prompts}

    def prediction(self, output: Tensor, x: Tensor) -> Tensor:
        return -torch.stack([*output])[:, :, 0]  # a list of samples [c,1,y,x]

    def guidance_arguments(self, settings: Mapping[str, Any], scale: float) -> dict[str, Any]:
        """The pipeline's own scale g guides by c + g (c - u), which is w = g + 1."""
        return {"guidance_scale": max(0.0, scale - 1)}

    def text(self, encoded: Sequence[Any]) -> TextCondition:
        prompts: list[Tensor] = encoded[0]
        masks = [torch.ones(len(prompt), dtype=torch.bool, device=prompt.device) for prompt in prompts]
        return TextCondition(pad_sequence(prompts, batch_first=True), pad_sequence(masks, batch_first=True))
