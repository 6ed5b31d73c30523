"""CLIP (Radford et al., arXiv 2103.00020): features of pictures and of prompts in one space, from a local folder.

The folder is one of transformers with safetensors (config.json, model.safetensors, tokenizer files), as the hub has
openai/clip-vit-large-patch14; nothing is downloaded. Pictures are resized on their shorter side (bicubic, antialias),
cut in the middle and normalised, by the mean and deviation of preprocessor_config.json, or else those of OpenAI's CLIP;
a folder that says another preparation is refused. The title carries the hash of the weights: FD(clip-1a2b3c4d).
"""

import json
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
CONFIG, WEIGHTS, PREPARATION = "config.json", "*.safetensors", "preprocessor_config.json"
STEPS = dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), True)
BICUBIC = 3
"""Of Pillow, as `resample` has it."""
ADVICE = (
    "download a CLIP model of transformers with safetensors once (hf download openai/clip-vit-large-patch14 "
    "--local-dir clip) and pass features.weights=FOLDER; a folder with open_clip_config.json is of features open_clip"
)


class CLIP(FeatureNetwork):
    """Pictures [b,y,x,3] of any size, and prompts; no logits.

    Args:
        weights: The folder.

    Raises:
        UserError: No such folder, weights that are missing or no safetensors, another model than CLIP, or pictures that
            are prepared in another way.
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
        self._mean, self._std = _normalisation(folder, self._side)
        if (self._mean, self._std) != (MEAN, STD):
            self.options = {"image_mean": self._mean, "image_std": self._std}

    def _forward(self, images: Tensor) -> Features:
        mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (self._mean, self._std))
        pixels = (cut(images, self._side) / 255 - mean) / std
        hidden = self._clip.vision_model(pixel_values=pixels).pooler_output
        return Features(self._clip.visual_projection(hidden).float())

    def longer(self, prompts: Sequence[str]) -> int:
        return sum(len(ids) > self._tokens for ids in self._tokenizer(list(prompts)).input_ids)

    def _embed(self, prompts: Sequence[str]) -> Tensor:
        options = {"padding": True, "truncation": True, "max_length": self._tokens, "return_tensors": "pt"}
        tokens = self._tokenizer(list(prompts), **options).to(self.device)
        hidden = self._clip.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        return self._clip.text_projection(hidden).float()


def _normalisation(folder: Path, side: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of a folder's pictures, which are otherwise prepared as here; OpenAI's where it says none.

    Raises:
        UserError: It says another preparation.
    """
    file = folder / PREPARATION
    if not file.is_file():
        return MEAN, STD
    sizes: dict[str, Any] = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    followed = {**STEPS, **sizes, "resample": BICUBIC, "rescale_factor": 1 / 255}
    try:
        says = json.loads(file.read_text(encoding="utf-8"))
        says |= {key: dict.fromkeys(sizes[key], says[key]) for key in sizes if isinstance(says.get(key), int)}
        mean, std = (tuple(map(float, says.get(k, known))) for k, known in (("image_mean", MEAN), ("image_std", STD)))
        other = next((key for key, value in followed.items() if says.get(key, value) != value), None)
        if len(mean) != 3 or len(std) != 3 or not min(std) > 0:
            raise ValueError(f"wanted 3 means and 3 positive deviations, found {mean} and {std}")
    except Exception as error:  # an untrusted file can be wrong in any way
        raise UserError(f"features.weights: {file} is no preparation of pictures ({error_line(error, 100)})") from error
    if other is not None:
        raise UserError(
            f"features.weights: {file}: {other}: {says[other]} is not followed by features clip, wanted "
            f"{followed[other]}; a model of open_clip's own format has features open_clip, which follows more"
        )
    return mean, std


def cut(images: Tensor, side: int) -> Tensor:
    """The middle of uint8 images [b,y,x,c], resized to float32 [b,c,side,side] in 0..255; the long side is cut off."""
    pixels = images.permute(0, 3, 1, 2).float()
    y, x = pixels.shape[2:]
    size = y * side // min(y, x), x * side // min(y, x)
    pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).round().clamp(0, 255)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return pixels[:, :, top : top + side, left : left + side]
