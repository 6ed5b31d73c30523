"""The parts of an MDTv2 or a DiT by name, and the space that each of their axes lives in.

A space is a set of channels that several tensors share, so that they are kept or cut together: `stream` (the residual
stream, e), `condition` (timestep plus label), `timestep` (inside the timestep's MLP), and in each block `hidden` (of
its MLP) and `heads` (what its heads give, h d). A model with a tensor that is not named here is of another family.
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
"""Tensors whose last axis is a space; their other axes are the data's."""

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
"""Linear maps, and the spaces they write and read: of the whole model, and of every block. An axis may hold several
copies of its space (six in an adaLN's, two in what a long skip reads); "" is the data's."""

BIAS_TABLE = "attn.rel_pos_bias.relative_position_bias_table"
SIDE = "sideblocks"
"""The section of the blocks that only masked passes run."""
_BLOCK = re.compile(r"(\w+\.\d+)\.(.+)")


@dataclass(frozen=True)
class LinearMap:
    """One linear map of the student, and the one of the teacher that it comes from."""

    name: str
    source: str
    part: str
    writes: str
    reads: str
    block: str = ""


def known(state: Mapping[str, Tensor]) -> bool:
    """Whether every tensor is one that is named here."""
    for name in state:
        block = _BLOCK.fullmatch(name)
        whole, part = (OF_BLOCK, block[2]) if block else (ENDS, name)
        if part not in TABLES and part != BIAS_TABLE and part.rpartition(".")[0] not in whole:
            return False
    return "final_layer.linear.weight" in state


def blocks(model: nn.Module) -> list[str]:
    """The names of a model's blocks, as they run in a plain pass; the side block comes last."""
    found = [_BLOCK.fullmatch(name) for name in model.state_dict()]
    return list(dict.fromkeys(match[1] for match in found if match))


def sites(student: nn.Module, layers: Mapping[str, str]) -> Iterator[LinearMap]:
    """The linear maps of a student's ends and of its blocks that have one of the teacher's to come from.

    The spaces `hidden` and `heads` get the block's name in front.
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
    """Space -> channels; of the blocks {student: own}, under the student's names and without `heads`."""
    state = model.state_dict()
    shared = {
        "stream": state["x_embedder.proj.bias"],
        "condition": state["t_embedder.mlp.2.bias"],
        "timestep": state["t_embedder.mlp.0.bias"],
    }
    hidden = {f"{block}.hidden": state[f"{own}.mlp.fc1.bias"] for block, own in layers.items()}
    return {space: len(tensor) for space, tensor in {**shared, **hidden}.items()}


def fixed(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Part -> the axes that no channel is on: what teacher and student must have in common."""
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
