"""HunyuanDiT (arXiv 2405.08748): DDPM with v prediction, cross-attention to BERT and T5, blocks with long skips.

Embeddings of both encoders are one sequence here: text_len tokens of BERT, filled up with zeros to the wider of the two
widths, then text_len_t5 of T5. Padding has embeddings, which the model reads where it pools T5's.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.adapters import Adapter, settings_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

LENGTHS = 77, 256
"""Tokens that the pipeline's call makes of a prompt by BERT and by T5."""
PIXELS, ROTARY_SIDE, ORIGINAL = 8, 512, (1024, 1024)
"""Pixels along the side of a latent; the side that rotary positions are scaled to; the size that its call names."""


class HunyuanDiT(Adapter):
    """Time is the timestep, the output v and the share of the variance [b,2c,y,x]."""

    transformer = "HunyuanDiT2DModel"
    pipelines = ("HunyuanDiTPipeline",)
    process = "ddpm"
    example_tokens = sum(LENGTHS)
    fixed_tokens = True
    attention = "self, and cross to text"
    cross_attention = ("*.attn2",)

    def text_widths(self, settings: Mapping[str, Any]) -> tuple[int, int | None]:
        return max(settings["cross_attention_dim"], settings["cross_attention_dim_t5"]), None

    def arguments(
        self, model: nn.Module, x: Tensor, time: Tensor, text: TextCondition, guidance: Tensor | None
    ) -> dict[str, Any]:
        settings = settings_of(model)
        bert = settings["text_len"]
        height, width = (PIXELS * side for side in x.shape[-2:])
        sizes = torch.tensor([[*ORIGINAL, height, width, 0, 0]], dtype=x.dtype, device=x.device)
        return {
            "hidden_states": x,
            "timestep": time.to(x.dtype),
            "encoder_hidden_states": text.embeddings[:, :bert, : settings["cross_attention_dim"]],
            "text_embedding_mask": text.mask[:, :bert],
            "encoder_hidden_states_t5": text.embeddings[:, bert:, : settings["cross_attention_dim_t5"]].contiguous(),
            "text_embedding_mask_t5": text.mask[:, bert:],
            "image_meta_size": sizes.repeat(len(x), 1),
            "style": torch.zeros(len(x), dtype=torch.long, device=x.device),
            "image_rotary_emb": _rotary(settings, x),
        }

    def encode(self, pipeline: "DiffusionPipeline", prompts: Sequence[str], tokens: int | None = None) -> TextCondition:
        """Its lengths are fixed: learned embeddings stand for padding."""
        options = {"device": pipeline.text_encoder.device, "do_classifier_free_guidance": False}
        with torch.no_grad():
            encoded = [
                pipeline.encode_prompt(
                    prompt=list(prompts), max_sequence_length=length, text_encoder_index=number, **options
                )
                for number, length in enumerate(LENGTHS)
            ]
        width = max(embeddings.shape[-1] for embeddings, *_ in encoded)
        filled = [pad(embeddings, (0, width - embeddings.shape[-1])) for embeddings, *_ in encoded]
        masks = [mask for _, _, mask, _ in encoded]
        return TextCondition.of(torch.cat(filled, dim=1), torch.cat(masks, dim=1))

    def limits(self, pipeline: "DiffusionPipeline", tokens: int | None = None) -> dict[str, int]:
        return dict(zip(("tokenizer", "tokenizer_2"), LENGTHS))


def _rotary(settings: Mapping[str, Any], x: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary positions of latents [b,c,y,x], as the pipeline's call makes them: cosines and sines [y*x,d]."""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed
    from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

    patch = settings["patch_size"]
    grid = x.shape[-2] // patch, x.shape[-1] // patch
    region = get_resize_crop_region_for_grid(grid, ROTARY_SIDE // PIXELS // patch)
    cosines, sines = get_2d_rotary_pos_embed(
        settings["attention_head_dim"], region, grid, device=x.device, output_type="pt"
    )
    return cosines, sines
