"""Models whose weights are held in bfloat16."""

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)
KEPT = "_keep_in_fp32_modules"
"""Of a class of diffusers: the names of what it keeps in float32."""


def in_bfloat16(model: M) -> M:
    """A model with its weights in bfloat16, but what its library keeps in float32.

    That is what transformers computes anew when it loads (rotary frequencies), and what a class of diffusers names.

    Args:
        model: In float32; it is changed.
    """
    names = {*(getattr(model, KEPT, None) or ())}
    wide = [(p, p.data) for name, p in model.named_parameters() if not names.isdisjoint(name.split("."))]
    kept = {name: module for name, module in model.named_modules() if _is_of_transformers(module)}
    saved = model.state_dict().keys()
    buffers = [
        (module.get_submodule(path), last, buffer)
        for prefix, module in kept.items()
        for name, buffer in module.named_buffers()
        if f"{prefix}.{name}".lstrip(".") not in saved and buffer.is_floating_point()
        for path, _, last in [name.rpartition(".")]
    ]
    buffers += [
        (model.get_submodule(path), last, buffer)
        for name, buffer in model.named_buffers()
        if not names.isdisjoint(name.split("."))
        for path, _, last in [name.rpartition(".")]
    ]
    model.bfloat16()
    for module, name, buffer in buffers:
        setattr(module, name, buffer)
    for parameter, data in wide:
        parameter.data = data
    return model


def _is_of_transformers(module: nn.Module) -> bool:
    return any(cls.__name__ == "PreTrainedModel" for cls in type(module).__mro__)
