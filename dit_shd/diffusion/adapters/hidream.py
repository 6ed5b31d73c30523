"""HiDream-I1 (arXiv 2505.22705): joint attention, then one stream, with experts; four text encoders.

CLIP's two give the pooled vector. A token has T5's embedding, then that of every layer of Llama, of which each block
reads one: 33 x 4,096 numbers. Padding is taken for text. Images that are not square are padded to the tokens of
max_resolution, as the model does it: such a token is a key of zeros, and no key that is hidden.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_shd.core.errors import UserError
from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.adapters import Adapter, settings_of
from dit_shd.diffusion.text_rows import PaddedImageRows, TextRows

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

CLIP_TOKENS = 218
"""The most that the pipeline gives CLIP."""
LARGEST_MU = 1.15
"""Of the pipeline's dynamic shift, which it takes at max_resolution's tokens (4,096) whatever the image's are."""
INFERENCE = "force_inference_output"


class HiDream(Adapter):
    """Time is 1000 times the share of noise, the output the velocity to the data."""

    transformer = "HiDreamImageTransformer2DModel"
    pipelines = ("HiDreamImagePipeline",)
    example_tokens = 128
    attention = "joint, then one stream"
    sized_by = ("default_sample_size",)

    def text_rows(self, settings: Mapping[str, Any]) -> TextRows:
        return PaddedImageRows(self.multiple(settings), padded=_most_image_tokens(settings))

    def text_widths(self, settings: Mapping[str, Any]) -> tuple[int, int | None]:
        t5, llama = settings["caption_channels"]
        return t5 + (max(settings["llama_layers"]) + 1) * llama, settings["text_emb_dim"]

    def arguments(
        self, model: nn.Module, x: Tensor, time: Tensor, text: TextCondition, guidance: Tensor | None
    ) -> dict[str, Any]:
        settings = settings_of(model)
        if settings.get(INFERENCE) and model.training and torch.is_grad_enabled():
            raise UserError(
                f"a transformer with {INFERENCE} gives its experts no gradients; train one with "
                f"student.config.{INFERENCE}=false"
            )
        if _is_padded(x) and _image_tokens(settings, x) > _most_image_tokens(settings):
            raise UserError(
                f"wanted latents of at most the {_most_image_tokens(settings)} tokens of max_resolution, or square "
                f"ones, found {x.shape[-2]} x {x.shape[-1]}"
            )
        t5, llama = settings["caption_channels"]
        return {
            **({"hidden_states": x} if not x.is_meta else _tokens(model, x)),
            "timesteps": 1000 * time,
            "encoder_hidden_states_t5": text.embeddings[..., :t5],
            "encoder_hidden_states_llama3": text.embeddings[..., t5:].split(llama, dim=-1),
            "pooled_embeds": text.pooled,
        }

    def predict(
        self, model: nn.Module, x: Tensor, time: Tensor, text: TextCondition, guidance: float | None = None
    ) -> Tensor:
        """In training mode, in which alone experts have gradients, the model gives patches [b,c,n,p*p]."""
        output = super().predict(model, x, time, text, guidance)
        settings = settings_of(model)
        if not model.training or settings.get(INFERENCE):
            return output
        side, rows, columns = settings["patch_size"], *(size // settings["patch_size"] for size in x.shape[-2:])
        patches = output[:, :, : rows * columns].unflatten(2, (rows, columns)).unflatten(4, (side, side))
        return patches.transpose(3, 4).reshape(x.shape)

    def prediction(self, output: Tensor, x: Tensor) -> Tensor:
        return -output

    def shift(self, scheduler: Mapping[str, Any], tokens: int) -> float | None:
        return math.exp(LARGEST_MU) if scheduler.get("use_dynamic_shifting") else None

    def size_arguments(self, pipeline: "DiffusionPipeline", size: tuple[int, int]) -> dict[str, Any]:
        """Its call scales every height and width to one area, default_sample_size's."""
        whole: Any = pipeline
        whole.default_sample_size = (1 + 1e-6) * math.sqrt(size[0] * size[1]) / whole.vae_scale_factor
        return super().size_arguments(pipeline, size)

    def limits(self, pipeline: "DiffusionPipeline", tokens: int | None = None) -> dict[str, int]:
        whole: Any = pipeline
        tokens = tokens or self.example_tokens
        others = {name: min(tokens, getattr(whole, name).model_max_length) for name in ("tokenizer_3", "tokenizer_4")}
        return {name: min(tokens, CLIP_TOKENS) for name in ("tokenizer", "tokenizer_2")} | others

    def image_tokens(self, model: nn.Module, layer: str, arguments: Mapping[str, Any]) -> range | None:
        x = arguments["hidden_states"]
        if _is_padded(x) and _image_tokens(settings_of(model), x) < _most_image_tokens(settings_of(model)):
            raise UserError(
                "a HiDream pads images that are not square, so that it is not told which of its tokens are text; "
                "wanted a square one"
            )
        return range(_image_tokens(settings_of(model), x))

    def text(self, encoded: Sequence[Any]) -> TextCondition:
        t5, llama = encoded[0], encoded[2]  # [b,m,e] and [layers,b,m,e]
        if t5.shape[1] != llama.shape[2]:
            raise UserError(
                f"text_tokens: wanted as many as both T5 and Llama take, found {t5.shape[1]} and {llama.shape[2]}"
            )
        return TextCondition.of(torch.cat([t5, *llama.to(t5)], dim=-1), pooled=encoded[4])


def _tokens(model: Any, x: Tensor) -> dict[str, Any]:  # noqa: ANN401
    """Latents as the model would make tokens of them, with their sizes as numbers, which it reads of tensors itself."""
    side = settings_of(model)["patch_size"]
    tokens, mask, _, ids = model.patchify(x)
    return {
        "hidden_states": tokens,
        "hidden_states_masks": x.new_ones(tokens.shape[:2]) if mask is None else mask,
        "img_ids": ids,
        "img_sizes": [(x.shape[-2] // side, x.shape[-1] // side)] * len(x),
    }


def _is_padded(x: Tensor) -> bool:
    """Whether the model pads such latents [b,c,y,x] to its most tokens."""
    return x.shape[-2] != x.shape[-1]


def _image_tokens(settings: Mapping[str, Any], x: Tensor) -> int:
    return x.shape[-2] * x.shape[-1] // settings["patch_size"] ** 2


def _most_image_tokens(settings: Mapping[str, Any]) -> int:
    return math.prod(settings["max_resolution"]) // settings["patch_size"] ** 2
