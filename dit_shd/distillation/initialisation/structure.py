"""The structure of MDTv2 and DiT: their tensors by name, and the space of each axis.

A space is a set of channels that several tensors share, so that they are kept or cut together: `stream` (the residual
stream, e), `condition` (timestep plus label), `timestep` (inside the timestep's MLP), and in each block `hidden` (of
its MLP) and `heads` (the heads' outputs, h d). A model with a tensor that is not named here is of another family.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

TABLES = {
    "pos_embed": "stream",
    "decoder_pos_embed": "stream",
    "mask_token": "stream",
    "y_embedder.embedding_table.weight": "condition",
}
"""Tensors whose last axis is a space; their other axes are set by the data."""

ENDS = {
    "x_embedder.proj": ("stream", ""),
    "t_embedder.mlp.0": ("timestep", ""),
    "t_embedder.mlp.2": ("condition", "timestep"),
    "final_layer.linear": ("", "stream"),
    "final_layer.adaLN_modulation.1": ("stream", "condition"),
}
OF_BLOCK = {
    "attn.qkv": ("heads", "stream"),
    "attn.proj": ("stream", "heads"),
    "mlp.fc1": ("hidden", "stream"),
    "mlp.fc2": ("stream", "hidden"),
    "skip_linear": ("stream", "stream"),
    "adaLN_modulation.1": ("stream", "condition"),
}
"""Linear maps outside of blocks (ENDS) and in every block, with the spaces that they write and read. An axis may be
several copies of its space (six of an adaLN's outputs, two of a long skip's inputs); "" is set by the data."""

BIAS_TABLE = "attn.rel_pos_bias.relative_position_bias_table"
SIDE = "sideblocks"
"""The blocks that only masked passes run."""
_BLOCK = re.compile(r"(\w+\.\d+)\.(.+)")


@dataclass(frozen=True)
class LinearMap:
    """One linear map of the student, and the teacher's that it is made of."""

    name: str
    """In the student."""
    source: str
    """In the teacher."""
    part: str
    """In the block, or in the model."""
    writes: str
    """The space of its outputs."""
    reads: str
    """The space of its inputs."""
    block: str = ""
    """Of the student; empty outside of blocks."""


def known(state: Mapping[str, Tensor]) -> bool:
    """Whether every tensor is named here."""
    for name in state:
        block = _BLOCK.fullmatch(name)
        maps, part = (OF_BLOCK, block[2]) if block else (ENDS, name)
        if part not in TABLES and part != BIAS_TABLE and part.rpartition(".")[0] not in maps:
            return False
    return "final_layer.linear.weight" in state


def blocks(model: nn.Module) -> list[str]:
    """The names of a model's blocks in the order of a plain pass; the side block comes last."""
    matches = [_BLOCK.fullmatch(name) for name in model.state_dict()]
    return list(dict.fromkeys(match[1] for match in matches if match))


def linear_maps(student: nn.Module, layers: Mapping[str, str]) -> Iterator[LinearMap]:
    """The linear maps of a student outside of blocks and in the blocks of `layers`.

    The spaces `hidden` and `heads` are prefixed by the block's name.

    Args:
        student: An MDTv2 or DiT.
        layers: Student block -> teacher block.
    """
    for part, (writes, reads) in ENDS.items():
        yield LinearMap(part, part, part, writes, reads)
    state = student.state_dict()
    for block, source in layers.items():
        for part, spaces in OF_BLOCK.items():
            if f"{block}.{part}.weight" in state:
                writes, reads = (f"{block}.{space}" if space in ("hidden", "heads") else space for space in spaces)
                yield LinearMap(f"{block}.{part}", f"{source}.{part}", part, writes, reads, block)


def widths(model: nn.Module, layers: Mapping[str, str]) -> dict[str, int]:
    """Space -> number of channels, without the spaces `heads`.

    Args:
        model: An MDTv2 or DiT.
        layers: Student block -> the model's block; spaces have the student's names.
    """
    state = model.state_dict()
    shared = {
        "stream": state["x_embedder.proj.bias"],
        "condition": state["t_embedder.mlp.2.bias"],
        "timestep": state["t_embedder.mlp.0.bias"],
    }
    hidden = {f"{block}.hidden": state[f"{source}.mlp.fc1.bias"] for block, source in layers.items()}
    return {space: len(tensor) for space, tensor in {**shared, **hidden}.items()}


def fixed(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Part -> the lengths of axes that are no space, in which teacher and student must agree."""
    state = model.state_dict()
    shapes = {name: tuple(state[name].shape[:-1]) for name in TABLES if name in state}
    tables = [tensor for name, tensor in state.items() if name.endswith(BIAS_TABLE)]
    return {
        **shapes,
        "x_embedder.proj": tuple(state["x_embedder.proj.weight"].shape[1:]),
        "t_embedder.mlp.0": tuple(state["t_embedder.mlp.0.weight"].shape[1:]),
        "final_layer.linear": tuple(state["final_layer.linear.bias"].shape),
        **({"relative_position_bias_table": (len(tables[0]),)} if tables else {}),
    }
