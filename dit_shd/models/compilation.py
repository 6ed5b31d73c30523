"""torch.compile block by block: blocks of a kind share a graph, and a model compiles in the time of a block or two."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch import nn

from dit_shd.models.blocks import blocks
from dit_shd.models.transformer import Block

Backend = str | Callable[..., Any]
RECOMPILATIONS = 64
"""Graphs that are kept of one block's code: of teacher and student, of both passes, recorded and not."""


def compile_blocks(model: nn.Module, backend: Backend = "inductor") -> None:
    """Compile the blocks of a model in place; a model without blocks is compiled as a whole.

    Args:
        model: Of dit_shd: what its blocks have in common is compiled, and captures are handed over between blocks. Of
            another package: whole blocks, with captures handed over at the end of the forward.
        backend: Of torch.compile.
    """
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILATIONS)
    for part in blocks(model) or [model]:
        if isinstance(part, Block):
            part.compiler = backend
        else:
            part.compile(backend=backend)


def is_compiled(block: nn.Module) -> bool:
    """Whether a block's code is compiled."""
    return block._compiled_call_impl is not None or (isinstance(block, Block) and block.compiler is not None)


@contextmanager
def compiled_blocks(model: nn.Module, backend: Backend = "inductor") -> Generator[None]:
    """The same for the length of a `with` block."""
    parts = blocks(model) or [model]
    before = [(part, part._compiled_call_impl, getattr(part, "compiler", None)) for part in parts]
    compile_blocks(model, backend)
    try:
        yield
    finally:
        for part, call, compiler in before:
            part._compiled_call_impl = call
            if isinstance(part, Block):
                part.compiler = compiler
