"""CLIP (Radford et al., arXiv 2103.00020): features of pictures and of prompts in one space, from a local folder.

The folder is one of transformers with safetensors (config.json, model.safetensors, tokenizer files), as the hub has
openai/clip-vit-large-patch14; nothing is downloaded. Pictures are resized on their shorter side (bicubic, antialias),
cut in the middle and normalised as CLIP's. The title carries the hash of the weights: FD(clip-1a2b3c4d).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_shd.core.errors import UserError, error_line
from dit_shd.core.installation import require
from dit_shd.evaluation.features import FeatureNetwork, Features
from dit_shd.evaluation.network_weights import weights_folder

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CONFIG, WEIGHTS = "config.json", "*.safetensors"
ADVICE = (
    "download a CLIP model of transformers with safetensors once (hf download openai/clip-vit-large-patch14 "
    "--local-dir clip) and pass features.weights=FOLDER; a folder with open_clip_config.json is of features open_clip"
)


class CLIP(FeatureNetwork):
    """Pictures [b,y,x,3] of any size, and prompts; no logits.

    Args:
        weights: The folder.

    Raises:
        UserError: No such folder, weights that are missing or no safetensors, or another model than CLIP.
    """

    channels = 3
    has_logits = False
    reads_text = True

    def __init__(self, weights: Path) -> None:
        require(("transformers",), "clip", "features clip")
        from transformers import AutoTokenizer, CLIPModel

        folder, self.sha256 = weights_folder(weights, CONFIG, WEIGHTS, ADVICE)
        try:
            network: Any = CLIPModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # of transformers, for files that are no CLIP
            raise UserError(f"features.weights: {folder} holds no CLIP ({error_line(error, 160)}); {ADVICE}") from error
        self.network = self._clip = network.float().eval().requires_grad_(False)  # stored halves are read as halves
        self.title = f"clip-{self.sha256[:8]}"
        self._side: int = network.config.vision_config.image_size
        self._tokens: int = network.config.text_config.max_position_embeddings

    def _forward(self, images: Tensor) -> Features:
        mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
        pixels = (cut(images, self._side) / 255 - mean) / std
        hidden = self._clip.vision_model(pixel_values=pixels).pooler_output
        return Features(self._clip.visual_projection(hidden).float())

    def _embed(self, prompts: Sequence[str]) -> Tensor:
        options = {"padding": True, "truncation": True, "max_length": self._tokens, "return_tensors": "pt"}
        tokens = self._tokenizer(list(prompts), **options).to(self.device)
        hidden = self._clip.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        return self._clip.text_projection(hidden).float()


def cut(images: Tensor, side: int) -> Tensor:
    """The middle of uint8 images [b,y,x,c], resized to float32 [b,c,side,side] in 0..255; the long side is cut off."""
    pixels = images.permute(0, 3, 1, 2).float()
    y, x = pixels.shape[2:]
    size = y * side // min(y, x), x * side // min(y, x)
    pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).round().clamp(0, 255)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return pixels[:, :, top : top + side, left : left + side]
