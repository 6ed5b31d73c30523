"""What is known of a model before it runs: its own recorders, settings that hide attention, and what to do about it."""

import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from dit_shd.core.errors import UserError

INDEX = re.compile(r"(?<![^.])\d+(?![^.])")
"""A number that is a part of a path by itself."""
OTHER_WORDS = re.compile("flatten(?!t)|scatter|pattern|lattice|attrib|formatt|batter")
"""With the letters of attention in them."""
NO_PROJECTION = (
    "what attention gives does not arrive unchanged at any projection (a gate, a norm or a sum comes first), so no W^O "
    "belongs to a head and the squeeze of the paper does not apply; method constant does without"
)
PIPELINE_PARTS = ("transformer", "unet", "model", "vae")
"""Under what names a pipeline holds its denoiser."""
KERNELS = (
    "flash_attn",
    "flash_attn_interface",
    "xformers",
    "sageattention",
    "natten",
    "torch.nn.attention.flex_attention",
)
"""Packages whose attention does not end in scaled_dot_product_attention."""
BY_HAND = {"AttnProcessor", "AttnAddedKVProcessor", "SlicedAttnProcessor", "CustomDiffusionAttnProcessor"}
"""Processors of diffusers that multiply and take the softmax themselves."""
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def is_ours(module: nn.Module) -> bool:
    """Whether a module hands a Capture to its `recorder` whenever that is not None."""
    return hasattr(type(module), "recorder")


def own_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The attention modules of a model of dit_shd, by name; none of other people's models."""
    return {plain(path): module for path, module in model.named_modules() if is_ours(module)}


def plain(name: str) -> str:
    """A module's name without what DDP, torch.compile and checkpoint wrappers put in."""
    return ".".join(part for part in name.removeprefix("module.").split(".") if part not in _WRAPPERS)


def section_of(name: str) -> str:
    """A layer's name without its numbers: those that are parts of its path, or all if none is (block1, block2).

    The number of a run stays, as a second call of attention in a layer is another thing than a third.
    """
    path, mark, run = name.partition("#")
    section = INDEX.sub("*", path)
    return (section if section != path else re.sub(r"\d+", "*", path)) + mark + run


def unwrapped(model: nn.Module) -> nn.Module:
    """What DDP, FSDP or torch.compile wrap; the names of its modules are the same."""
    while True:
        children = model._modules
        inner = children.get("_orig_mod") or children.get("_fsdp_wrapped_module")
        inner = children["module"] if inner is None and set(children) == {"module"} else inner
        if inner is None:
            return model
        model = inner


def cores(model: nn.Module) -> list[nn.Module]:
    """The model, what it wraps, and what that is an adapter of: each may be called by itself."""
    core = unwrapped(model)
    base = getattr(core._modules.get("base_model"), "model", None)
    models = [model, core, base] if isinstance(base, nn.Module) else [model, core]
    return list(dict.fromkeys(models))


def is_cross(module: nn.Module) -> bool:
    """Whether a module says of itself that its keys are another sequence's."""
    return getattr(module, "is_cross_attention", False) is True


def check(model: Any) -> None:
    """Refuse what is no model, or cannot be recorded as it is set up.

    Raises:
        UserError: Saying what to hand in, or what to set.
    """
    if not isinstance(model, nn.Module):
        parts = [name for name in PIPELINE_PARTS if isinstance(getattr(model, name, None), nn.Module)]
        hint = f"; of a pipeline take its model: .{parts[0]}" if parts else ""
        raise UserError(f"capture: wanted a model (a torch module), found {type(model).__name__}{hint}")
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError(
            f"capture: {type(model).__name__} is a compiled program of torch.jit, whose calls cannot be seen; give the "
            "model that it was made from"
        )
    if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
        raise UserError(
            "capture: DataParallel runs copies of the model in threads, whose captures would mix; start one process "
            "for each GPU (accelerate launch, torchrun)"
        )
    for module in model.modules():
        recompute = getattr(vars(module).get("_gradient_checkpointing_func"), "keywords", {})
        recomputes = recompute.get("use_reentrant") and vars(module).get("gradient_checkpointing") and module.training
        if recomputes and any(parameter.requires_grad for parameter in module.parameters()):
            raise UserError(
                f"capture: {type(model).__name__} recomputes its blocks by reentrant gradient checkpointing, which "
                "gives captured tensors no gradient; use use_reentrant=False"
            )


def without_graph(layer: str) -> UserError:
    """What is to be raised for a layer whose captures would train nothing."""
    return UserError(
        f"capture: {layer} ran without a graph inside a forward that has one, so no loss on it would train it. A "
        "teacher, or a forward that is for its maps alone: run it under torch.no_grad(). A frozen part of the model: "
        ".requires_grad_(False) of it, or capture the rest: capture(model.dit), capture(model, layers=[...]). Gradient "
        "checkpointing: use_reentrant=False"
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
    if hasattr(module, "set_processor") and type(processor).__name__ in BY_HAND:
        return f"{type(processor).__name__} computes maps by hand; set AttnProcessor2_0 instead"
    if getattr(module, "fused_attn", True) is False:
        timm: Any = sys.modules.get("timm.layers")
        more = ", experimental=True" if timm is not None and timm.use_fused_attn() else ""
        return (
            f"fused_attn is off; TIMM_FUSED_ATTN={2 if more else 1} in the environment, or "
            f"timm.layers.set_fused_attn(True{more}) before the model is made, or module.fused_attn = True where its "
            "forward knows it"
        )
    config = getattr(module, "config", None)
    how = getattr(config, "_attn_implementation", None)
    if isinstance(how, str) and how != "sdpa" and "attention" in type(module).__name__.lower():
        if getattr(config, "attn_logit_softcapping", None) is not None:
            return (
                f"its attn_implementation is '{how}', and sdpa would drop its soft cap: these maps cannot be recorded"
            )
        if not _knows_sdpa(module):
            return f"its attn_implementation is '{how}', and transformers has no sdpa for this model"
        return f"its attn_implementation is '{how}'; load the model with attn_implementation='sdpa'"
    return None


def _knows_sdpa(module: nn.Module) -> bool:
    """Whether the models of a transformers module's file can be set to sdpa."""
    file = vars(sys.modules[type(module).__module__])
    flags = [vars(x)["_supports_sdpa"] for x in file.values() if isinstance(x, type) and "_supports_sdpa" in vars(x)]
    return not flags or any(flags)


def why_silent(module: nn.Module) -> str:
    """For a module that ran and never called it."""
    reason, imports = refusal(module), sorted(kernels([module]))
    if reason is None and imports:
        reason = (
            f"its file imports {', '.join(imports)}, which took the call; without that package, or with its switch "
            "off, many fall back to PyTorch's"
        )
    others = (
        "is another attention backend active? diffusers: model.set_attention_backend('native'); timm: "
        "module.fused_attn = True; transformers: attn_implementation='sdpa'. A kernel that is hard-wired (flex), "
        "linear attention or maps computed by hand cannot be recorded"
    )
    return f"ran without calling scaled_dot_product_attention: {reason or others}"


def kernels(modules: Iterable[nn.Module]) -> set[str]:
    """What the files of some modules import of packages whose attention cannot be seen."""
    return {name for module in modules for name in _imports(type(module).__module__)}


def _imports(file: str) -> Iterator[str]:
    for name, value in vars(sys.modules.get(file, sys)).items():
        origin = value.__name__ if isinstance(value, type(sys)) else str(getattr(value, "__module__", ""))
        if any(origin == kernel or origin.startswith(f"{kernel}.") for kernel in KERNELS):
            yield origin if isinstance(value, type(sys)) else f"{origin}.{name}"


def attention_like(modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Those of some modules that are attention by the name of their class or their processor, innermost."""
    named = {name: module for name, module in modules.items() if names_attention(_kind(module))}
    return {name: m for name, m in named.items() if not any(other.startswith(f"{name}.") for other in named)}


def names_attention(name: str) -> bool:
    """Whether a class or an attribute is attention by its name."""
    return "att" in OTHER_WORDS.sub("", name.lower())


def _kind(module: nn.Module) -> str:
    processor = type(getattr(module, "processor", None)).__name__ if hasattr(module, "set_processor") else ""
    return type(module).__name__ + processor


def why_nothing(modules: dict[str, nn.Module]) -> str:
    """Why no call of scaled_dot_product_attention was seen while these modules ran."""
    suspects = attention_like(modules)
    if not suspects:
        return (
            "no attention module ran that ends in PyTorch's scaled_dot_product_attention; linear attention, a "
            "hard-wired kernel or maps computed by hand cannot be recorded"
        )
    name, module = next(iter(suspects.items()))
    shown: Any = getattr(module, "processor", None) if hasattr(module, "set_processor") else module
    return f"{name} ({type(shown).__name__}) {why_silent(module)}"


def is_dropping_adapter(module: nn.Module) -> bool:
    """Whether it is a layer of peft in training with dropout, of which the base layer's product alone has the rows."""
    inside = module.modules() if hasattr(module, "base_layer") else ()
    return any(isinstance(one, nn.Dropout) and one.training and one.p > 0 for one in inside)
