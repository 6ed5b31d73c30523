"""How large the divergence's blocks are, by head width and precision: chosen by count, to be tuned on a GPU."""

import torch

from dit_shd.attention.kernels.blocks import Blocks, is_large


def of_rows(d_teacher: int, d_student: int, dtype: torch.dtype, measure: str, bias: str) -> Blocks:
    """For the divergence by rows: two blocks of maps and two accumulators [rows, width]."""
    if measure == "mse" or is_large(d_teacher, d_student, dtype):
        return Blocks(32, 32, 8, 1)
    return Blocks(32 if bias == "dense" else 64, 32, 8, 2)


def of_keys(d_teacher: int, d_student: int, dtype: torch.dtype, bias: str) -> Blocks:
    """For the divergence by keys: two blocks of maps and one accumulator [keys, width]."""
    if is_large(d_teacher, d_student, dtype):
        return Blocks(32, 32, 4, 1)
    return Blocks(64, 32, 8 if bias == "dense" else 4, 2)
