"""Chroma: FLUX.1's blocks without its pooled vector; a small network makes the modulation of each block by its number.

Its pipeline gives the transformer a mask of the prompt's tokens and the first of its padding, in floating point, which
attention adds to its logits: all other padding takes part, as FLUX.1's does, with odds that are e times smaller. The
authors' own code hides it, by a mask of bools. This is asked as diffusers' pipeline asks (0.39 to 0.42), by which
students are sampled, too. A student with fewer blocks begins with the modulation of other blocks of its teacher, until
it has learned its own.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad

from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion import packing
from dit_shd.diffusion.adapters import Adapter


class Chroma(packing.Packed, Adapter):
    """Time is the share of noise, the output the velocity to noise of each patch."""

    transformer = "ChromaTransformer2DModel"
    pipelines = ("ChromaPipeline",)
    most_tokens = 512
    mask_at = 2

    def arguments(
        self, model: nn.Module, x: Tensor, time: Tensor, text: TextCondition, guidance: Tensor | None
    ) -> dict[str, Any]:
        places = packing.places(x)
        return {
            "hidden_states": packing.pack(x),
            "timestep": time.to(x.dtype),
            "encoder_hidden_states": text.embeddings,
            "attention_mask": pad(text.mask, (0, len(places)), value=True).to(x.dtype),
            "img_ids": places,
            "txt_ids": x.new_zeros(text.tokens, 3),
        }
