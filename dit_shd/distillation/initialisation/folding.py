"""A teacher's tensors in the parts that its student has: what scales a map or a token goes into the map or the token.

timm's ViT is one class with options: DeiT III scales the output of each branch (LayerScale) and gives its class token
no position, DeiT does neither. A scaled map is a map, and a position of zeros is none, so that nothing is lost.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dit_shd.distillation.initialisation.depth import source_of
from dit_shd.models.blocks import named_beside, named_blocks
from dit_shd.models.quantization import dequantised, whole_state

SCALED = {"ls1": "attn.proj", "ls2": "mlp.fc2"}
"""Scales of a block of timm's, each with the map whose output it scales."""
POSITIONS = "pos_embed"


@torch.no_grad()
def folded(student: nn.Module, teacher: nn.Module, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The teacher's tensors by name, those that the student has no part for folded into others where that is exact.

    Args:
        student: Perhaps without weights.
        teacher: A model of its class; left as it is.
        weights: Its tensors, if not those that it holds.
    """
    state: dict[str, Tensor] = whole_state(teacher) if weights is None else dict(weights)
    if not any(type(module).__name__ == "LayerScale" for module in student.modules()):
        for name, module in teacher.named_modules():
            block, _, kind = name.rpartition(".")
            if type(module).__name__ == "LayerScale" and f"{block}.{SCALED.get(kind)}.weight" in state:
                _scale(state, f"{block}.{SCALED[kind]}", state.pop(f"{name}.gamma"))
    modules: dict[str, Any] = dict(student.named_modules())
    for name, module in teacher.named_modules():
        positions, other = f"{name}.{POSITIONS}".lstrip("."), modules.get(name)
        if positions in state and _without(module) and other is not None and not _without(other):
            rows = state[positions].new_zeros(1, int(getattr(other, "num_prefix_tokens", 0)), state[positions].shape[2])
            state[positions] = torch.cat([rows, state[positions]], 1)
    return state


def left_out(student: nn.Module, teacher: nn.Module, layers: Mapping[str, str]) -> list[str]:
    """The teacher's tensors that the student has no part for, of blocks that give weights and outside of blocks.

    Args:
        student: Perhaps without weights.
        teacher: A model of its class, perhaps without weights, too.
        layers: Student block -> teacher block.
    """
    used = {source_of(name, layers) for name in student.state_dict()}
    blocks = tuple(f"{block}." for block in [*named_blocks(teacher), *named_beside(teacher)])
    giving = tuple(  # not those whose inner blocks are paired by themselves
        f"{source}." for block, source in layers.items() if not any(other.startswith(f"{block}.") for other in layers)
    )
    rest = [name for name in folded(student, teacher) if name not in used]
    return [name for name in rest if name.startswith(giving) or not name.startswith(blocks)]


def _without(module: Any) -> bool:  # noqa: ANN401
    """Whether a model gives its class token no position."""
    return getattr(module, "no_embed_class", False) is True


def _scale(state: dict[str, Tensor], name: str, scale: Tensor) -> None:
    """Scale the outputs of a map."""
    state[f"{name}.weight"] = dequantised(state[f"{name}.weight"]).float() * scale.float()[:, None]
    if f"{name}.bias" in state:
        state[f"{name}.bias"] = state[f"{name}.bias"].float() * scale.float()
