"""The repeated blocks of any transformer."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from dit_shd.core.errors import UserError


def named_blocks(model: nn.Module, prefix: str = "") -> dict[str, nn.Module]:
    """The members of a transformer's outermost lists of modules, by name."""
    found: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        path = f"{prefix}{name}"
        if isinstance(child, nn.ModuleList) or _is_list_of_blocks(child):
            found |= {f"{path}.{name}": block for name, block in child.named_children()}
        else:
            found |= named_blocks(child, f"{path}.")
    return {name: block for name, block in found.items() if any(True for _ in block.parameters())}


def _is_list_of_blocks(module: nn.Module) -> bool:
    """Whether it is a Sequential that repeats one kind of block, as timm has them, and no small chain of layers."""
    if not isinstance(module, nn.Sequential) or len(module) < 2:
        return False
    return len({type(member) for member in module}) == 1 and any(True for _ in module[0].children())


def blocks(model: nn.Module) -> list[nn.Module]:
    """The same without their names."""
    return list(named_blocks(model).values())


@contextmanager
def recorded_blocks(model: nn.Module, sink: Callable[[str, Tensor], None]) -> Generator[None]:
    """Inside it, hand the output [b,n,e] of each block of a forward to `sink(name, output)` as it runs.

    Raises:
        UserError: a model without blocks, or a block that gives no tensor.
    """
    found = named_blocks(model)
    if not found:
        raise UserError(f"{type(model).__name__}: has no list of blocks whose outputs could be read")

    def hook(name: str) -> Any:
        def see(_module: nn.Module, _inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            if not isinstance(first, Tensor):
                raise UserError(f"{name}: wanted a block that gives a tensor first, found {type(first).__name__}")
            sink(name, first)

        return see

    handles = [block.register_forward_hook(hook(name)) for name, block in found.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
