"""Which modules of a model are softmax attention that can be recorded; why others are not, and what to do."""

import functools
from collections.abc import Mapping
from types import CodeType, FunctionType

from torch import nn

from dit_shd.core.errors import UserError

ENDS = {"scaled_dot_product_attention", "dispatch_attention_fn", "ALL_ATTENTION_FUNCTIONS"}
"""What code refers to that ends in scaled_dot_product_attention: it itself, diffusers' way, transformers' way."""
NO_PROJECTION = (
    "what attention gives does not arrive unchanged at any projection (a gate, a norm or a sum comes first), so no W^O "
    "belongs to a head and the squeeze of the paper does not apply. Leave the layer out by layers=[...], or take maps "
    "alone by projections=False and squeeze them by method constant"
)


def is_ours(module: nn.Module) -> bool:
    """Whether a module hands a Capture to its `recorder` whenever that is not None."""
    return hasattr(type(module), "recorder")


def attention_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The innermost modules of a model that are ours or whose code reaches scaled_dot_product_attention, by name."""
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        processor = vars(module).get("processor", module._modules.get("processor"))
        if is_ours(module) or _reaches(type(module), "forward") or _reaches(type(processor), "__call__"):
            found[path] = module
    outer = {path[:i] for path in found for i, letter in enumerate(path) if letter == "."}
    return {plain(path): module for path, module in found.items() if path and path not in outer}


def plain(name: str) -> str:
    """A module's name without what DDP, torch.compile and checkpoint wrappers put in."""
    return ".".join(part for part in name.removeprefix("module.").split(".") if part not in _WRAPPERS)


_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def is_cross(module: nn.Module) -> bool:
    """Whether a module says of itself that its keys are another sequence's."""
    return getattr(module, "is_cross_attention", False) is True


def check(model: nn.Module) -> dict[str, nn.Module]:
    """The attention layers of a model, none of which is hidden by how the model is set up.

    Raises:
        UserError: no softmax attention, or recomputation that leaves no graph.
    """
    for module in model.modules():
        recompute = getattr(vars(module).get("_gradient_checkpointing_func"), "keywords", {})
        if recompute.get("use_reentrant") and vars(module).get("gradient_checkpointing"):
            raise UserError(
                f"capture: {type(model).__name__} recomputes its blocks by reentrant gradient checkpointing, which "
                "gives captured tensors no gradient; use use_reentrant=False"
            )
    layers = attention_layers(model)
    if not layers:
        processors = {type(m.processor).__name__ for m in model.modules() if hasattr(m, "set_processor")}
        which = f" ({', '.join(sorted(processors))})" if processors else ""
        raise UserError(
            f"capture: {type(model).__name__} has no attention module{which} that ends in PyTorch's "
            "scaled_dot_product_attention; linear attention, a hard-wired kernel or maps computed by hand cannot be "
            "recorded (diffusers' AttnProcessor: set AttnProcessor2_0 instead)"
        )
    return layers


def without_maps(model: nn.Module, layers: Mapping[str, nn.Module]) -> str | None:
    """Why none of the layers is self-attention, if the model's self-attention works another way (Sana's is linear)."""
    others = {type(m.processor).__name__ for m in model.modules() if hasattr(m, "set_processor")} - {
        type(getattr(m, "processor", None)).__name__ for m in layers.values()
    }
    if not others or not all(is_cross(module) for module in layers.values()):
        return None
    return (
        f"its self-attention ({', '.join(sorted(others))}) does not end in scaled_dot_product_attention: linear "
        f"attention has no map. Cross-attention has to be named: layers={', '.join(layers)}"
    )


def refusal(module: nn.Module) -> str | None:
    """Why a module would not reach scaled_dot_product_attention as it is set up now, and which setting to change."""
    if is_ours(module):
        return None
    processor = getattr(module, "processor", None)
    backend = getattr(processor, "_attention_backend", None)
    name = str(getattr(backend, "value", backend))
    if backend is not None and "native" not in name:
        others = getattr(processor, "_SUPPORTED_BACKENDS", ("native",))
        remedy = "use model.set_attention_backend('native')" if "native" in others else "it supports no other"
        return f"its attention backend is '{name}'; {remedy}"
    if getattr(module, "fused_attn", True) is False:
        return (
            "fused_attn is off; timm.layers.set_fused_attn(True) before the model is made, or module.fused_attn = True"
        )
    how = getattr(getattr(module, "config", None), "_attn_implementation", "sdpa")
    if how is not None and how != "sdpa":
        return f"its attn_implementation is '{how}'; load the model with attn_implementation='sdpa'"
    return None


def why_silent(module: nn.Module) -> str:
    """For a module that ran and never called it."""
    reason = refusal(module) or (
        "is another attention backend active? diffusers: model.set_attention_backend('native'); "
        "timm: module.fused_attn = True; transformers: attn_implementation='sdpa'. A kernel that is hard-wired (flex) "
        "cannot be recorded"
    )
    return f"ran without calling scaled_dot_product_attention: {reason}"


@functools.cache
def _reaches(cls: type, method: str) -> bool:
    """Whether a method of a class refers to one of ENDS, itself or through functions of its file and methods."""
    start = getattr(cls, method, None)
    waiting, seen = [start], set()
    while waiting:
        function = waiting.pop()
        function = getattr(function, "__wrapped__", function)
        if not isinstance(function, FunctionType) or function in seen:
            continue
        seen.add(function)
        names = _names(function.__code__)
        if names & ENDS:
            return True
        for helper in (found for name in names for found in (function.__globals__.get(name), getattr(cls, name, None))):
            if isinstance(helper, FunctionType) and helper.__module__ == function.__module__:
                waiting.append(helper)
    return False


def _names(code: CodeType) -> set[str]:
    """Every global and attribute name in a function, inner functions included."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names
