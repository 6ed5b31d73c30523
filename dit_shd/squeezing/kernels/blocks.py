"""How large the divergence's blocks are: the fastest on an H100 that fit into 99 KiB (benchmarks/gpu_blocks.py)."""

import torch

from dit_shd.attention.kernels.blocks import Blocks, is_by_warp, is_large


def of_rows(d_teacher: int, d_student: int, dtype: torch.dtype, measure: str, bias: str) -> Blocks:
    """For the divergence by rows: two blocks of maps and an accumulator [rows, width], or two for mse."""
    if is_large(d_teacher, d_student, dtype):
        return Blocks(32, 32, 8, 1)
    if measure == "mse":
        return Blocks(32, 32, 8, 1, Blocks(32, 32, 8, 2))
    if bias == "dense":
        return Blocks(32, 32, 8, 2)
    return Blocks(64, 32, 4, 3 if bias == "none" else 2, Blocks(64, 32, 8, 1) if bias == "relative" else None)


def of_keys(d_teacher: int, d_student: int, dtype: torch.dtype, bias: str, k: int) -> Blocks:
    """For the divergence by keys, of groups of k heads: two blocks of maps and one accumulator [keys, width]."""
    if is_large(d_teacher, d_student, dtype):
        return Blocks(32, 32, 4, 1)
    if bias == "none" and k < 3:
        return Blocks(64, 64, 4, 2)
    return Blocks(64, 32, 8 if bias == "dense" else 4, 2)


def is_unrolled(blocks: Blocks, capability: int) -> bool:
    """Whether the table's gradient may have several heads of a group under way: blocks are small, or registers many."""
    return blocks.rows < 32 or not is_by_warp(capability)
