"""Public checkpoints: reading a file without executing anything, and the sizes that its tensors tell."""

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dit_shd.errors import UserError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A flat state dict from a .safetensors or a PyTorch file. No pickled code is ever run (weights_only).

    Raises:
        UserError: no such file, a file that is no checkpoint, or one that wants to execute code.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; wanted a checkpoint (.safetensors, .pt, .pth, .ckpt)")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: refused, because loading it would execute code or it is no checkpoint; "
            "wanted a plain state dict of tensors"
        ) from error
    except Exception as error:  # a broken file can fail in any way; none of them is worth a traceback
        raise UserError(f"{path}: not a readable checkpoint ({' '.join(str(error).split())[:120]})") from error
    for wrapper in ("ema", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    named = isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not named:
        raise UserError(f"{path}: wanted a state dict (names to tensors), found {type(state).__name__}")
    return state


def clean(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes that DDP and torch.compile add to names."""
    return {k.removeprefix("module.").removeprefix("_orig_mod."): v for k, v in state.items()}


def mdt_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of MDTv2 that a public state dict tells."""
    try:
        width, channels, patch, _ = state["x_embedder.proj.weight"].shape
        tokens = state["pos_embed"].shape[1]
        heads = state["sideblocks.0.attn.rel_pos_bias.relative_position_bias_table"].shape[1]
        classes = state["y_embedder.embedding_table.weight"].shape[0] - 1
        out_channels = state["final_layer.linear.weight"].shape[0] // patch**2
        hidden = state["sideblocks.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise UserError(f"not an MDTv2 state dict: {error} is missing or has another shape") from error
    decode = _count(state, "de_blocks")
    return dict(
        sample_size=math.isqrt(tokens) * patch,
        patch_size=patch,
        in_channels=channels,
        num_layers=_count(state, "en_inblocks") + _count(state, "en_outblocks") + decode,
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        decode_layer=decode,
        num_classes=classes,
        mlp_ratio=hidden / width,
        learn_sigma=out_channels == 2 * channels,
    )


def _count(state: Mapping[str, Tensor], section: str) -> int:
    return len({k.split(".")[1] for k in state if k.startswith(section + ".")})


def load_exactly(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict, or say in one line what does not fit."""
    own = model.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if missing or extra or wrong:
        shapes = [f"{k} wanted {tuple(own[k].shape)} found {tuple(state[k].shape)}" for k in sorted(wrong)[:2]]
        raise UserError(
            f"the checkpoint does not fit {type(model).__name__}: {len(missing)} tensors missing {missing[:2]}, "
            f"{len(extra)} unknown {extra[:2]}, {len(wrong)} of another shape {shapes}"
        )
    model.load_state_dict(dict(state))
