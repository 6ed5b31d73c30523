"""How large a block of a kernel is, by head width and precision: the fastest on an H100 (benchmarks/gpu_blocks.py)."""

import functools
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Blocks:
    """Query rows and keys of a program's block, and how it is run."""

    rows: int
    cols: int
    warps: int
    stages: int
    by_warp: "Blocks | None" = None
    """In its place where a warp's products take its registers (is_by_warp); None: with twice the warps."""

    def options(self) -> dict[str, int]:
        """The block's sizes and its warps, under the names that a kernel's launch takes."""
        return {"ROWS": self.rows, "COLS": self.cols, "num_warps": self.warps, "num_stages": self.stages}

    def on(self, capability: int) -> "Blocks":
        """The block for a GPU of a major compute capability; where it is by warp more of them share a large one."""
        if not is_by_warp(capability) or self.rows * self.cols < 1024:
            return self
        return self.by_warp or replace(self, warps=max(self.warps, min(8, 2 * self.warps)))

    def here(self) -> "Blocks":
        """The block for the GPU that is here."""
        return self.on(capability_here())

    @staticmethod
    def width(d: int) -> int:
        """A head width as blocks have it: a power of two, 16 or more (what the tensor cores take)."""
        return max(16, 1 << (d - 1).bit_length())

    @classmethod
    def of_values(cls, d: int, width: int, values: int, dtype: torch.dtype, bias: str) -> "Blocks":
        """For attention with several values: one float32 accumulator [rows, values * width]."""
        wide = max(cls.width(d), values * cls.width(width))
        if wide > 128 or dtype == torch.float32:  # 99 KiB of an A10 hold one stage of the widest
            stages = 1 if dtype == torch.float32 and wide >= 512 else 2
            return cls(32, 32, 4 if bias == "none" else 8, stages)
        return cls(64, 64, 4, 3 if bias == "none" else 2)

    @classmethod
    def of_gradients(cls, d: int, width: int, dtype: torch.dtype, bias: str) -> "Blocks":
        """For the gradient of attention by rows: two blocks of maps and an accumulator [rows, width]."""
        if is_large(d, width, dtype):
            return cls(32, 32, 4, 1)
        return cls(64, 64, 4, 2)

    @classmethod
    def of_key_gradients(cls, d: int, width: int, dtype: torch.dtype, bias: str) -> "Blocks":
        """For the gradients by keys and values: two blocks of maps and two accumulators [keys, width]."""
        if is_large(d, width, dtype):
            return cls(32, 32, 4, 1)
        return cls(32, 64, 4, 2) if bias in ("none", "lines") else cls(64, 32, 8, 2)

    @classmethod
    def of_offsets(cls, window: int) -> "Blocks":
        """For the gradient of a relative bias: whole lines of its grid."""
        line = cls.width(window)
        return cls(line, line, 4 if line < 32 else 8, 1, cls(line, line, 4 if line < 64 else 8, 1))


def is_by_warp(capability: int) -> bool:
    """Whether a warp's products take its registers, by a GPU's major compute capability.

    Before Hopper (9), and on the GeForce RTX 50 series (12), whose tensor cores are not those of a B200 (10).
    """
    return not 9 <= capability < 12


@functools.cache
def capability_here() -> int:
    """The major compute capability of the GPU that is here; 9 where there is none."""
    return torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else 9


def is_large(d: int, width: int, dtype: torch.dtype) -> bool:
    """Whether blocks of these widths take more registers than 16-bit ones of width 64."""
    return dtype == torch.float32 or max(d, width) > 64
