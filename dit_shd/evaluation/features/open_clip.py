"""CLIP models of open_clip (OpenCLIP, SigLIP, CoCa, ...): features of pictures and of prompts, from a local folder.

The folder is one of the library's format, as the hub has laion/CLIP-ViT-H-14-laion2B-s32B-b79K: open_clip_config.json,
safetensors, and the tokenizer's files where the config names a tokenizer; nothing is downloaded. Networks, tokenizers
and the preparation of pictures (preprocess_cfg: size, mean, std, interpolation, crop or squash) are the library's
(`pip install "dit_shd[clip]"`). The title carries the hash of the weights: FD(open_clip-1a2b3c4d).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit_shd.core.errors import UserError, error_line
from dit_shd.core.installation import require
from dit_shd.evaluation.features import FeatureNetwork, Features
from dit_shd.evaluation.network_weights import weights_folder

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip*_model.safetensors"
ADVICE = (
    "download a model of open_clip with safetensors once (hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K "
    "--local-dir open_clip) and pass features.weights=FOLDER; a CLIP of transformers is of features clip"
)
TOWERS = {"text_cfg": "hf_model_name", "vision_cfg": "timm_model_name"}
"""Where the config may name a model whose shape another library knows."""


class OpenCLIP(FeatureNetwork):
    """Pictures [b,y,x,3] of any size, and prompts; no logits.

    Args:
        weights: The folder.

    Raises:
        UserError: The library is not installed, no such folder, weights that are missing or no safetensors, another
            model, or a config that needs a download or has keys that the library does not follow.
    """

    channels = 3
    has_logits = False
    reads_text = True

    def __init__(self, weights: Path) -> None:
        require(("open_clip", "transformers"), "clip", "features open_clip")
        import open_clip

        library: Any = open_clip
        folder, self.sha256 = weights_folder(weights, CONFIG, WEIGHTS, ADVICE)
        known = [field.name for field in fields(library.transform.PreprocessCfg)]
        config = _checked_config(folder, known)
        text, self.options = config["model_cfg"]["text_cfg"], {"preprocess": config.get("preprocess_cfg", {})}
        local = {"local_files_only": True, "trust_remote_code": False} if text.get("hf_tokenizer_name") else {}
        try:
            model, prepare = library.create_model_from_pretrained(f"local-dir:{folder}", return_transform=True)
            self._tokenize: Callable[..., Tensor] = library.get_tokenizer(f"local-dir:{folder}", **local)
        except Exception as error:  # of the library, for files that are no such model
            raise UserError(
                f"features.weights: {folder} holds no model of open_clip ({error_line(error, 160)}); {ADVICE}"
            ) from error
        self._prepare: Callable[[Any], Tensor] = prepare
        self.network = self._model = model.eval().requires_grad_(False)
        self.title = f"open_clip-{self.sha256[:8]}"

    def _forward(self, images: Tensor) -> Features:
        from PIL import Image

        pixels = torch.stack([self._prepare(Image.fromarray(image)) for image in images.cpu().numpy()])
        return Features(self._model.encode_image(pixels.to(self.device), normalize=False).float())

    def longer(self, prompts: Sequence[str]) -> int:
        places = self._tokenize([""]).shape[1]
        *tokens, nothing = self._tokenize([*prompts, ""], context_length=2 * places)
        return sum(bool((row[places:] != nothing[-1]).any()) for row in tokens)

    def _embed(self, prompts: Sequence[str]) -> Tensor:
        tokens = self._tokenize(list(prompts)).to(self.device)
        return self._model.encode_text(tokens, normalize=False).float()


def _checked_config(folder: Path, known: Sequence[str]) -> dict[str, Any]:
    """The config; `known` are the keys of preprocess_cfg that the library follows.

    Raises:
        UserError: No such config, a preparation that the library would not follow, or towers that it would download.
    """
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        model, unknown = content["model_cfg"], sorted(set(content.get("preprocess_cfg", {})) - set(known))
        text, trunk = (model[tower].get(key) for tower, key in TOWERS.items())
        remote = [text] if text and not Path(text).is_dir() else [trunk] if ":" in (trunk or "") else []
    except Exception as error:  # an untrusted file can be wrong in any way
        raise UserError(
            f"features.weights: {folder}/{CONFIG} is no config of open_clip ({error_line(error, 100)})"
        ) from error
    if unknown:
        raise UserError(
            f"features.weights: {folder}/{CONFIG}: preprocess_cfg.{unknown[0]} is not followed by open_clip; wanted "
            f"{', '.join(known)}"
        )
    if remote:
        raise UserError(
            f"features.weights: {folder}/{CONFIG} takes a tower's shape from '{remote[0]}' on the hub, and nothing is "
            "downloaded; wanted a local folder, or a model whose towers are open_clip's and timm's"
        )
    return content
