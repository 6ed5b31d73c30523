"""The repeated blocks of any transformer."""

import inspect
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dit_shd.core.errors import UserError
from dit_shd.models.batch_norms import count_once

if TYPE_CHECKING:
    from diffusers import ModelMixin

STREAM = "hidden_states"
"""The argument by which a block of diffusers or transformers is given the tokens that it works on."""
STREAMS = (STREAM, "x", "img")
"""And those of others."""
NO_TOKENS = ("ChromaApproximator",)
"""Classes of modules whose lists work on what is made of the time, and not on tokens."""
MASK = "attention_mask"
UNMASKED = ("ChromaTransformer2DModel",)
"""Classes of diffusers that do not give all of their blocks the mask where these are recomputed."""

BESIDE = {"caption_projection": ("double_stream_blocks", "single_stream_blocks")}
"""Lists of modules with one for each block of some lists of blocks, and others behind: HiDream's maps of texts."""


def named_blocks(model: nn.Module, prefix: str = "") -> dict[str, nn.Module]:
    """The members of a transformer's outermost lists of modules, by name."""
    members: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        path = f"{prefix}{name}"
        if type(child).__name__ in NO_TOKENS or (name in BESIDE and isinstance(child, nn.ModuleList)):
            continue
        if isinstance(child, nn.ModuleList) or _is_list_of_blocks(child):
            members |= {f"{path}.{index}": block for index, block in child.named_children()}
        else:
            members |= named_blocks(child, f"{path}.")
    return {name: block for name, block in members.items() if any(True for _ in block.parameters())}


def named_beside(model: nn.Module) -> dict[str, nn.Module]:
    """The members of the lists that stand beside lists of blocks, by name."""
    lists = {name: getattr(model, name, None) for name in BESIDE}
    return {
        f"{name}.{index}": member
        for name, members in lists.items()
        if isinstance(members, nn.ModuleList)
        for index, member in members.named_children()
    }


def _is_list_of_blocks(module: nn.Module) -> bool:
    """Whether a module is a Sequential of blocks of one class, as timm's, rather than a chain of layers."""
    if not isinstance(module, nn.Sequential) or len(module) < 2:
        return False
    return len({type(member) for member in module}) == 1 and any(True for _ in module[0].children())


def blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of `named_blocks` without their names."""
    return list(named_blocks(model).values())


def forward_parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    """The parameters of a module's forward, by name, whatever hooks have made of it (those of offloading name none)."""
    plain = getattr(module, "_orig_mod", module)  # torch.compile(module)
    return dict([*inspect.signature(type(plain).forward).parameters.items()][1:])  # without the module itself


def recompute(model: nn.Module) -> None:
    """Turn on gradient checkpointing: blocks run again in the backward, and hold nothing until then.

    Args:
        model: Of diffusers, timm or transformers.

    Raises:
        UserError: A class or an architecture whose library cannot.
    """
    options = {"gradient_checkpointing_func": _again} if type(model).__module__.startswith("diffusers.") else {}
    try:
        if type(model).__name__ in UNMASKED:
            masked = _Masked()
            model.register_forward_pre_hook(masked.remember, with_kwargs=True)
            options = {"gradient_checkpointing_func": masked}
        cast("ModelMixin", model).enable_gradient_checkpointing(**options)
    except ValueError as error:
        raise UserError(
            f"gradient_checkpointing: diffusers recomputes no blocks of {type(model).__name__}; wanted "
            "gradient_checkpointing=false"
        ) from error
    count_once(model)


@dataclass
class _Masked:
    """Recomputes blocks, each with the mask that the model was given."""

    mask: Tensor | None = None

    def remember(self, _model: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.mask = kwargs.get(MASK)

    def __call__(self, block: nn.Module, *args: Any) -> Any:  # noqa: ANN401
        given = inspect.signature(type(block).forward).bind(block, *args).arguments
        rest = {} if MASK in given else {MASK: self.mask}
        run: Any = checkpoint
        return run(block.__call__, *args, use_reentrant=False, **rest)


def _again(module: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """diffusers' own, which takes no keywords, though HunyuanImage gives it some."""
    return checkpoint(module, *args, use_reentrant=False, **kwargs)


@contextmanager
def recorded_blocks(model: nn.Module, sink: Callable[[str, Tensor], None]) -> Generator[None]:
    """Call `sink(name, output)` with the output [b,n,e] of each block as the model runs in the `with` block.

    Raises:
        UserError: The model has no blocks, or the output of a block is not to be had; see recorded.
    """
    named = named_blocks(model)
    if not named:
        raise UserError(f"{type(model).__name__}: has no list of blocks whose outputs could be read")
    with recorded(named, sink):
        yield


@contextmanager
def recorded(modules: Mapping[str, nn.Module], sink: Callable[[str, Tensor], None]) -> Generator[None]:
    """Call `sink(name, output)` with what each of some modules gives while they run in the `with` block.

    Of several tensors, as blocks with a stream for text and one for the image give them, it is the one that has the
    shape of the module's argument `hidden_states`, which in diffusers is the image, or of the first of STREAMS that it
    has, or of its first; else the first.
    A module that runs again in one forward is called NAME#2, NAME#3, ...

    Args:
        modules: The modules, by name.
        sink: Takes a name and a tensor [b,n,e].

    Raises:
        UserError: A module gives no tensor, or two of that shape.
    """
    runs: dict[str, int] = {}

    def hook(name: str, module: nn.Module) -> Callable[..., None]:
        arguments = list(forward_parameters(module))
        stream = next((each for each in STREAMS if each in arguments), "")
        place = arguments.index(stream) if stream else 0

        def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
            given = kwargs.get(stream, args[place] if place < len(args) else None)
            runs[name] = runs.get(name, 0) + 1
            sink(name + (f"#{runs[name]}" if runs[name] > 1 else ""), _stream(name, output, given))

        return record

    with ExitStack() as stack:
        for name, module in modules.items():
            _after(stack, module, hook(name, module))
        yield


def _after(stack: ExitStack, module: nn.Module, record: Callable[..., None]) -> None:
    """Call `record(module, args, kwargs, output)` after each call of a module until the stack is closed.

    Of a compiled module outside of what is compiled: inside, the hook of the first call would be there for good.
    """
    compiled = module._compiled_call_impl
    if compiled is None:
        stack.callback(module.register_forward_hook(record, with_kwargs=True).remove)
        return

    def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        output = compiled(*args, **kwargs)
        record(module, args, kwargs, output)
        return output

    module._compiled_call_impl = call
    stack.callback(setattr, module, "_compiled_call_impl", compiled)


def _stream(name: str, output: object, given: object) -> Tensor:
    """The tensor of a module's output that continues what it was given."""
    several = list(output) if isinstance(output, (tuple, list)) else [output]
    tensors = [x for x in several if isinstance(x, Tensor)]
    alike = [x for x in tensors if isinstance(given, Tensor) and x.shape == given.shape]
    if len(alike) > 1:
        raise UserError(f"{name}: gives as many text tokens as image tokens, which cannot be told apart")
    if not tensors or not (alike or isinstance(several[0], Tensor)):
        raise UserError(f"{name}: wanted a block that gives a tensor first, found {type(several[0]).__name__}")
    return (alike or tensors)[0]
