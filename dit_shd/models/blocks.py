"""The repeated blocks of any transformer."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from torch import Tensor, nn

from dit_shd.core.errors import UserError


def named_blocks(model: nn.Module, prefix: str = "") -> dict[str, nn.Module]:
    """The members of a transformer's outermost lists of modules, by name."""
    members: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        path = f"{prefix}{name}"
        if isinstance(child, nn.ModuleList) or _is_list_of_blocks(child):
            members |= {f"{path}.{index}": block for index, block in child.named_children()}
        else:
            members |= named_blocks(child, f"{path}.")
    return {name: block for name, block in members.items() if any(True for _ in block.parameters())}


def _is_list_of_blocks(module: nn.Module) -> bool:
    """Whether a module is a Sequential of blocks of one class, as timm's, rather than a chain of layers."""
    if not isinstance(module, nn.Sequential) or len(module) < 2:
        return False
    return len({type(member) for member in module}) == 1 and any(True for _ in module[0].children())


def blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of `named_blocks` without their names."""
    return list(named_blocks(model).values())


@contextmanager
def recorded_blocks(model: nn.Module, sink: Callable[[str, Tensor], None]) -> Generator[None]:
    """Call `sink(name, output)` with the output [b,n,e] of each block as the model runs in the `with` block.

    Raises:
        UserError: The model has no blocks, or a block does not return a tensor.
    """
    named = named_blocks(model)
    if not named:
        raise UserError(f"{type(model).__name__}: has no list of blocks whose outputs could be read")

    def hook(name: str) -> Callable[..., None]:
        def record(_module: nn.Module, inputs: tuple[object, ...], keywords: dict[str, object], output: object) -> None:
            tokens = _stream(keywords.get("hidden_states", inputs[0] if inputs else None), output)
            if tokens is None:
                raise UserError(f"{name}: gives as many text tokens as image tokens, which cannot be told apart")
            if not isinstance(tokens, Tensor):
                raise UserError(f"{name}: wanted a block that gives a tensor first, found {type(tokens).__name__}")
            sink(name, tokens)

        return record

    handles = [block.register_forward_hook(hook(name), with_kwargs=True) for name, block in named.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _stream(given: object, output: object) -> object:
    """The output of the stream that a block is given as its hidden states; of blocks of text and image, the image's.

    Args:
        given: The block's hidden states [b,n,e].
        output: What it returns: a tensor, or several, of which the first is taken if none is shaped like `given`.

    Returns:
        That output; None where several are shaped alike.
    """
    if not isinstance(output, (tuple, list)) or not output:
        return output
    alike = [x for x in output if isinstance(x, Tensor) and isinstance(given, Tensor) and x.shape == given.shape]
    if len(alike) > 1:
        return None
    return alike[0] if alike else output[0]
