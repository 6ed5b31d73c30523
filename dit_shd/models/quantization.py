"""Teachers in fewer bits: diffusers' own quantization configs, for the weights of linear maps alone.

torchao has 8 bits (int8 with a scale for each output, fp8) and 4 bits (int4 in groups of 128, on a GPU); bitsandbytes
has nf4 (QLoRA, arXiv 2305.14314), on a GPU. Products are computed in bfloat16.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from dit_shd.core.errors import UserError, error_line, one_line
from dit_shd.core.installation import require

Bits = Literal["int8", "fp8", "int4", "nf4"]
Precision = Literal["no", "bf16", "int8", "fp8", "int4", "nf4"]
GROUP = {"int4": 128, "nf4": 64}
"""Weights that share a scale; in 8 bits it is a row's."""
ON_GPU = ("int4", "nf4")
CONFIG = "quantization_config"
"""Key of the config of a model that was quantised."""
OF_QUANTISED = (CONFIG, "_pre_quantization_dtype")
"""What diffusers adds to its config; neither is an argument of the class."""
RAW = "multi_head_attention_forward"
"""A function of PyTorch that is given weights past the modules that hold them, and takes plain tensors alone."""


def is_quantised(precision: Precision) -> bool:
    """Whether a precision is one of fewer than 16 bits."""
    return precision in get_args(Bits)


def unread(source: str | Path, precision: Precision, actual: str) -> UserError:
    """The error for a teacher of a kind that is not read in fewer bits than 16.

    Args:
        source: As a user gave it.
        precision: That is wanted.
        actual: What it is.
    """
    return UserError(
        f"{source}: teacher_precision={precision} reads folders of diffusers (config.json with _class_name), found "
        f"{actual}; teacher_precision=bf16 reads everything"
    )


def config_of(bits: Precision, device: torch.device, whole: Sequence[str] = ()) -> Any:  # noqa: ANN401 - either class
    """The quantization config of diffusers.

    Args:
        bits: The bits of the weights.
        device: Where the model is to run.
        whole: Names of the model's modules that are not quantised, but in bfloat16.

    Raises:
        UserError: The package is not installed, or the device is no GPU where one is needed.
    """
    package = "bitsandbytes" if bits == "nf4" else "torchao"
    require((package,), "nf4" if bits == "nf4" else "lowbit", f"teacher_precision={bits}")
    if bits in ON_GPU and device.type != "cuda":
        raise UserError(f"teacher_precision: {bits} needs a GPU, found {device.type}; int8 and fp8 run everywhere")
    import diffusers

    if bits == "nf4":
        options: dict[str, Any] = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
        made = diffusers.BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=[*whole], **options)
    else:
        try:
            made = diffusers.TorchAoConfig(_torchao(bits), [*whole])
        except RuntimeError as error:
            raise UserError(
                f"teacher_precision: {bits} is refused by diffusers {diffusers.__version__} ({error_line(error)}); "
                "update diffusers or use a GPU"
            ) from error
    return made


def config_for(bits: Precision, device: torch.device, cls: Any, values: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """The quantization config of diffusers for a model: what of it cannot be quantised stays in bfloat16.

    Args:
        bits: As in config_of.
        device: As in config_of.
        cls: The class of the model, of diffusers or of dit_shd.
        values: Of its config.json; of one that no model can be made of, reading the weights will say so.
    """
    try:
        with torch.device("meta"):
            whole = unquantisable(cls.from_config({**values}))
    except Exception:  # of diffusers, for a config that may be wrong in any way
        whole = []
    return config_of(bits, device, whole)


def _torchao(bits: Precision) -> Any:  # noqa: ANN401
    from torchao import quantization

    if bits == "int4":  # the layout that an A100 or newer multiplies
        return quantization.Int4WeightOnlyConfig(group_size=GROUP[bits], int4_packing_format="tile_packed_to_4d")  # type: ignore[arg-type]
    return quantization.Int8WeightOnlyConfig() if bits == "int8" else quantization.Float8WeightOnlyConfig()


def unquantisable(model: nn.Module) -> list[str]:
    """The modules whose linear maps' weights are multiplied past them, by name: HunyuanDiT's pooling of its text."""
    codes = {
        name: getattr(inspect.unwrap(type(part).forward), "__code__", None) for name, part in model.named_modules()
    }
    return [name for name, code in codes.items() if code is not None and RAW in code.co_names]


def check_whole(where: str, values: Mapping[str, Any]) -> None:
    """Refuse a folder whose weights are in fewer bits on disk.

    Args:
        where: The folder, for the error.
        values: Of its config.json.

    Raises:
        UserError: They are.
    """
    settings = values.get(CONFIG)
    if settings:
        raise UserError(
            f"{where}: its weights are quantised already ({_words(settings)}); wanted a folder of whole weights, of "
            "which teacher_precision=int8, fp8, int4 or nf4 makes such ones as it reads them"
        )


def _words(settings: Any) -> str:  # noqa: ANN401 - of a file
    """A quantization config of a folder: its package and bits."""
    values = settings if isinstance(settings, Mapping) else {}
    kind = values.get("quant_type") or values.get("weights_dtype") or values.get("bits")
    if isinstance(kind, Mapping):  # torchao's: {default: {_type: Int8WeightOnlyConfig, ...}}
        kind = next((value.get("_type") for value in kind.values() if isinstance(value, Mapping)), None)
    if values.get("load_in_8bit"):
        kind = "int8"
    elif values.get("load_in_4bit"):
        kind = values.get("bnb_4bit_quant_type")
    return one_line(" ".join(str(word) for word in (values.get("quant_method"), kind) if word)) or "of an unknown kind"


def plain_parts(tensor: Tensor) -> dict[str, Tensor]:
    """The plain tensors that a tensor of another kind is made of, by name; a plain one is its own only part."""
    if not is_traceable_wrapper_subclass(tensor):
        return {"": tensor}
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    parts = {name: getattr(tensor, name) for name in names}
    inside = {name: plain_parts(part) for name, part in parts.items() if isinstance(part, Tensor)}  # of torchao 0.17
    return {".".join(filter(None, (name, each))): part for name, of in inside.items() for each, part in of.items()}


def dequantised(weight: Tensor) -> Tensor:
    """A weight [o,e] in the precision that its products are computed in."""
    if hasattr(weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit  # type: ignore[import-not-found]

        return dequantize_4bit(weight.detach(), weight.quant_state)  # type: ignore[attr-defined]
    if not is_traceable_wrapper_subclass(weight) or hasattr(weight, "placements"):
        return weight
    try:
        return weight.dequantize()
    except NotImplementedError:  # int4 as torchao packs it for a GPU, which only multiplies
        rows = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        return nn.functional.linear(rows, weight).t()


def mend_zeros(model: nn.Module) -> None:
    """Make zeros of rows of zeros in 8 bits, of which torchao's fp8 makes NaN (0 over the row's scale, 0)."""
    for parameter in model.parameters():
        parts = plain_parts(parameter)
        numbers, scale = parts.get("qdata"), parts.get("scale")
        if numbers is not None and scale is not None and numbers.dtype.itemsize == 1 and not bool(scale.all()):
            empty = scale == 0
            numbers.view(torch.uint8).masked_fill_(empty, 0)
            scale.masked_fill_(empty, 1)


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's tensors by name; weights that bitsandbytes has packed in 4 bits are of their shape, without numbers."""
    packed = {n: p.quant_state for n, p in model.named_parameters() if hasattr(p, "quant_state")}  # type: ignore[attr-defined]
    beside = tuple(f"{name}." for name in packed)  # how to read them
    whole = {name: torch.empty(how.shape, dtype=how.dtype, device="meta") for name, how in packed.items()}
    return {name: x for name, x in model.state_dict().items() if not name.startswith(beside)} | whole


def counted_bytes(model: nn.Module, bits: Precision) -> int:
    """Bytes of a model's parameters and buffers at a precision, by count: scales included, all else in bfloat16.

    Args:
        model: Perhaps without memory, in float32.
        bits: One of fewer than 16.
    """
    whole = {id(x) for name in unquantisable(model) for x in model.get_submodule(name).parameters()}
    maps = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    weights = {id(weight): weight for weight in maps if id(weight) not in whole}
    others = [x for x in (*model.parameters(), *model.buffers()) if id(x) not in weights]
    return sum(_linear_bytes(weight, bits) for weight in weights.values()) + 2 * sum(x.numel() for x in others)


def _linear_bytes(weight: Tensor, bits: Precision) -> int:
    if bits == "int4" and weight.shape[1] % GROUP[bits]:
        return 2 * weight.numel()  # torchao leaves it in bfloat16
    if bits in GROUP:  # of a group int4 has scale and zero in bfloat16, nf4 the largest in float32
        return weight.numel() // 2 + 4 * (weight.numel() // GROUP[bits])
    return weight.numel() + 4 * weight.shape[0]
