"""Registers, shared memory and spills of every Triton kernel and configuration, compiled ahead of time: no GPU needed.

    python benchmarks/triton_kernels.py [--arch 80 90] [--width 64 72] [--dtype bf16 fp32]

Each kernel is compiled to a cubin as it is launched (dit_shd/attention/kernels, dit_shd/squeezing/kernels), and the
cubin is read by cuobjdump. A spill (a local load or store) at a head width of 64 in 16 bits on sm_90, whose block sizes
were chosen by measuring, is a fault: the command ends with 1 then.
"""

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dit_shd.attention.kernels import gradients, scores
from dit_shd.attention.kernels.blocks import Blocks
from dit_shd.squeezing.kernels import blocks as divergence_blocks
from dit_shd.squeezing.kernels import divergence
from dit_shd.squeezing.kernels.squared import squared_rows

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BIASES = [("none", False), ("lines", False), ("relative", False), ("dense", True)]
"""Bias and causality of both sides."""


def side(dtype: str) -> scores.Side:
    """Types of a capture's arguments."""
    x, stride = f"*{dtype}", "i32"
    return scores.Side(
        x, stride, stride, stride, x, stride, stride, stride, stride, "fp32",
        "*fp32", stride, stride, stride, stride, "fp32", "*i32", stride, "*i32", stride, stride, "*i32",
    )  # fmt: skip


GROUP = divergence.Group("*i32", "*i32", "*fp32", "i32", "i32", "i32", "*fp32", "*fp32", "i32", "i32")
ROWS = divergence.Rows("*fp32", "*fp32", "*fp32", "*fp32", "*fp32", "i32")


def configurations(dtype: str, width: int, arch: int) -> list[tuple[str, Any, dict[str, Any], dict[str, Any], Blocks]]:
    """Name, kernel, types of its arguments, its constants and blocks."""
    found = []
    for (bias, causal), values in itertools.product(BIASES, (0, 1, 2, 4)):
        blocks = Blocks.of_values(width, width, values, DTYPES[dtype], bias)
        constants = dict(
            VALUES=values, WIDTH=width, BLOCK_WIDTH=Blocks.width(width), VALUE_WIDTH=width,
            BLOCK_VALUE=Blocks.width(width),
            BIAS=bias, CAUSAL=causal, WHOLE=True, PRECISION="ieee",
        )  # fmt: skip
        types = dict(
            side=side(dtype), value=f"*{dtype}", value_b="i32", value_h="i32", value_m="i32", heads="*i32",
            partners="*i32", out="*fp32", out_b="i32", out_h="i32", out_v="i32", out_n="i32", top_out="*fp32",
            inverse_out="*fp32", H="i32", N="i32", M="i32",
        )  # fmt: skip
        found.append((f"attend_values {values} {bias}", scores.attend_values, types, constants, blocks))
    shared = dict(teacher=side(dtype), student=side(dtype), group=GROUP, kept=ROWS)
    numbers = dict(N="i32", M="i32")
    for (bias, causal), measure, k in itertools.product(BIASES, ("kl", "mse"), (2, 3)):
        fixed = dict(
            K=k, T_WIDTH=width, T_BLOCK=Blocks.width(width), T_BIAS=bias, T_CAUSAL=causal,
            S_WIDTH=width, S_BLOCK=Blocks.width(width), S_BIAS=bias, S_CAUSAL=causal, WHOLE=True, PRECISION="ieee",
        )  # fmt: skip
        name, squared = f"{measure} {k}:1 {bias}", fixed | dict(SQUARED=measure == "mse")
        kernel = squared_rows if measure == "mse" else divergence.divergence_rows
        rows = fixed | dict(GRADIENTS=True) | (dict(ENTROPY=True) if measure == "kl" else {})
        types = shared | dict(value="*fp32", d_query="*fp32", boost="fp32") | numbers
        blocks = divergence_blocks.of_rows(width, width, DTYPES[dtype], measure, bias)
        found.append((f"{kernel.__name__} {name}", kernel, types, rows, blocks))
        blocks = divergence_blocks.of_keys(width, width, DTYPES[dtype], bias, k)
        strides = {f"d_bias_{axis}": "i32" for axis in "bhnm"}
        types = shared | dict(d_key="*fp32", d_bias="*fp32") | strides | dict(boost="fp32") | numbers
        for collect in {"relative": ["none", "entries"], "dense": ["none", "dense"]}.get(bias, ["none"]):
            keys = squared | dict(COLLECT=collect)
            found.append((f"divergence_keys {name} {collect}", divergence.divergence_keys, types, keys, blocks))
        for line in (16, 32, 64) if bias == "lines" else ():
            types, blocks = shared | dict(lines="*fp32", SIDE="i32", N="i32"), Blocks.of_offsets(line)
            offsets = squared | dict(UNROLLED=divergence_blocks.is_unrolled(blocks, arch // 10))
            found.append((f"divergence_offsets {name} {line}", divergence.divergence_offsets, types, offsets, blocks))
    return found + attention_configurations(dtype, width)


def attention_configurations(dtype: str, width: int) -> list[tuple[str, Any, dict[str, Any], dict[str, Any], Blocks]]:
    """The same, of attention's gradients (its forward is attend_values with one value)."""
    rows = []
    up = gradients.Upstream(f"*{dtype}", *["i32"] * 3, f"*{dtype}", *["i32"] * 3, "*fp32", "*fp32", "*fp32")
    shared = dict(side=side(dtype), up=up, H="i32", N="i32", M="i32")
    for bias, causal in BIASES:
        blocks = Blocks.of_gradients(width, width, DTYPES[dtype], bias)
        fixed = dict(
            WIDTH=width, BLOCK_WIDTH=Blocks.width(width), VALUE_WIDTH=width, BLOCK_VALUE=Blocks.width(width),
            BIAS=bias, CAUSAL=causal, WHOLE=True, PRECISION="ieee",
        )  # fmt: skip
        types = shared | dict(d_query=f"*{dtype}")
        rows.append((f"attention_rows {bias}", gradients.attention_rows, types, fixed, blocks))
        strides = {f"d_bias_{axis}": "i32" for axis in "bhnm"}
        types = shared | dict(d_key=f"*{dtype}", d_value=f"*{dtype}", d_bias="*fp32") | strides
        for collect in {"relative": ["none", "entries"], "dense": ["none", "dense"]}.get(bias, ["none"]):
            keys, blocks = fixed | dict(COLLECT=collect), Blocks.of_key_gradients(width, width, DTYPES[dtype], bias)
            rows.append((f"attention_keys {bias} {collect}", gradients.attention_keys, types, keys, blocks))
        for line in (16, 32, 64) if bias == "lines" else ():
            types = shared | dict(lines="*fp32", SIDE="i32")
            name = f"attention_offsets {line}"
            rows.append((name, gradients.attention_offsets, types, fixed, Blocks.of_offsets(line)))
    return rows


def compiled(kernel: Any, types: dict[str, Any], constants: dict[str, Any], blocks: Blocks, arch: int) -> Any:
    """The kernel for an architecture, as it would be launched."""
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    tile = {"ROWS": blocks.rows, "COLS": blocks.cols}
    source = ASTSource(kernel, signature=signature, constexprs=constants | tile, attrs=dict(aligned(kernel, signature)))
    options = {"num_warps": blocks.warps, "num_stages": blocks.stages}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def aligned(kernel: Any, signature: dict[str, Any]) -> Iterator[tuple[tuple[int, ...], list[list[Any]]]]:
    """What a launch finds out of its arguments: pointers and strides are multiples of 16."""
    for place, name in enumerate(kernel.arg_names):
        kind = signature[name]
        fields = zip(kind._fields, kind) if isinstance(kind, tuple) else [(name, kind)]
        for at, (field, of) in enumerate(fields):
            stride = re.search(r"_[bhnm]$", field) and not field.endswith("bias_m") and "weight" not in field
            if of.startswith("*") or stride:
                yield (place, at) if isinstance(kind, tuple) else (place,), [["tt.divisibility", 16]]


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, shared bytes and stack bytes of a cubin."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        text = subprocess.run([tool, "--dump-resource-usage", file], capture_output=True, text=True, check=True).stdout
        sass = subprocess.run([tool, "--dump-sass", file], capture_output=True, text=True).stdout
    numbers = {key: int(number) for key, number in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)}
    numbers["SPILLS"] = len(re.findall(r"\b(?:STL|LDL)\b", sass))
    return numbers


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--arch", type=int, nargs="+", default=[80, 90], help="compute capabilities")
    options.add_argument("--width", type=int, nargs="+", default=[64, 72], help="head widths")
    options.add_argument("--dtype", nargs="+", default=["bf16", "fp32"], choices=list(DTYPES))
    options.add_argument("--only", default="", help="kernels whose name holds this")
    given = options.parse_args()
    spilled = 0
    print("| kernel | sm | dtype | width | rows x keys | warps | registers | shared B | spills |")
    print("|---|---|---|---|---|---|---|---|---|")
    for arch, dtype, width in itertools.product(given.arch, given.dtype, given.width):
        for name, kernel, types, constants, wanted in configurations(dtype, width, arch):
            if given.only not in name:
                continue
            blocks = wanted.on(arch // 10)
            result = compiled(kernel, types, constants, blocks, arch)
            used = resources(result.asm["cubin"])
            spilled += arch == 90 and width == 64 and dtype != "fp32" and used["SPILLS"] > 0
            print(
                f"| {name} | {arch} | {dtype} | {width} | {blocks.rows} x {blocks.cols} | {blocks.warps} | "
                f"{used['REG']} | {result.metadata.shared} | {used['SPILLS']} |",
                flush=True,
            )
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
