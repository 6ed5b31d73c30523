"""Wan 2.1 (arXiv 2503.20314), of whose videos one frame is an image: self-attention, cross-attention to UMT5."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.adapters import Adapter


class Wan(Adapter):
    """Time is 1000 times the share of noise, the output the velocity to noise; padding is zeros, and taken for text."""

    transformer = "WanTransformer3DModel"
    pipelines = ("WanPipeline",)
    example_tokens = 512
    cleaners = ("ftfy",)
    attention = "self, and cross to text"
    cross_attention = ("*.attn2",)
    mask_at = None

    def multiple(self, settings: Mapping[str, Any]) -> int:
        return settings["patch_size"][-1]

    def text_widths(self, settings: Mapping[str, Any]) -> tuple[int, int | None]:
        return settings["text_dim"], None

    def arguments(
        self, model: nn.Module, x: Tensor, time: Tensor, text: TextCondition, guidance: Tensor | None
    ) -> dict[str, Any]:
        return {"hidden_states": x[:, :, None], "timestep": 1000 * time, "encoder_hidden_states": text.embeddings}

    def prediction(self, output: Tensor, x: Tensor) -> Tensor:
        return output[:, :, 0]
