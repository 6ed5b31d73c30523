"""Numbers by which rows of a tensor are known again."""

import torch
from torch import Tensor


def fingerprints(rows: Tensor) -> Tensor:
    """A number for each row [..., k] that depends on every bit of it, and on nothing else; 0 for a row of zeros."""
    wide, whole = (torch.float64, torch.int64) if rows.dtype == torch.float64 else (torch.float32, torch.int32)
    bits = rows.to(wide).contiguous().view(whole).long()
    odd = torch.randint(-(2**62), 2**62, (rows.shape[-1],), generator=torch.Generator().manual_seed(0), device="cpu")
    return (bits * (2 * odd + 1).to(bits.device)).sum(-1)
