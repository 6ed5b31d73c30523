"""The accelerator of this machine: which it is, and which one of several a process works on."""

import os
from typing import TYPE_CHECKING

from dit_shd.core.errors import UserError

if TYPE_CHECKING:
    import torch


def accelerator() -> "torch.device | None":
    """The machine's accelerator, without a number; None where there is none.

    Apple's (MPS) counts as none: it has no float64, in which divergences, weights and statistics are summed.
    """
    import torch

    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return None if kind is None or kind.type == "mps" else torch.device(kind.type)


def current_device() -> "torch.device":
    """The accelerator if there is one, else the CPU."""
    import torch

    return accelerator() or torch.device("cpu")


def own_device() -> "torch.device":
    """The accelerator of this process by the launcher's LOCAL_RANK, made the current one; the CPU where there is none.

    For what comes before the group is joined. A launcher that shows each process one device numbers them all 0.
    """
    import torch

    kind = accelerator()
    if kind is None:
        return torch.device("cpu")
    of_kind = torch.get_device_module(kind)
    number = int(os.environ.get("LOCAL_RANK", "0")) % of_kind.device_count()
    of_kind.set_device(number)  # what follows, streams among it, is made on the current one
    return torch.device(kind.type, number)


def find_device(name: "str | int | torch.device", float64: bool = False) -> "torch.device":
    """The device of this name, as torch has it; `auto` is a CUDA GPU if there is one.

    Raises:
        UserError: No such device here, or one without float64 where that is wanted.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, dtype=torch.float64 if float64 else None, device=device)
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:80]
        wanted = "a device with float64" if float64 else "a device of this machine"
        raise UserError(f"device: wanted auto or {wanted}, found '{name}' ({reason}); try device=cpu") from error
    return device
