"""torch.compile for training."""

from functools import cache

import torch
from torch import nn

from dit_shd.core.errors import UserError, error_line
from dit_shd.models import compilation
from dit_shd.models.compilation import Backend

ONCE = "skip_fwd_side_effects_in_bwd_under_checkpoint"
"""torch's setting by which recomputed blocks do not hand over captures again; torch 2.9 lacks it."""


def compile_blocks(*models: nn.Module, backend: Backend = "inductor") -> None:
    """Compile the blocks of models in place, if compilation works on this machine.

    Args:
        models: Student and teachers.
        backend: Of torch.compile.

    Raises:
        UserError: Compilation does not work on this machine (no C++ compiler, as a rule), or torch is too old.
    """
    import torch._dynamo

    if not hasattr(torch._dynamo.config, ONCE):
        raise UserError(f"compile: torch {torch.__version__} is too old for it; update torch or set compile=false")
    check_compiler("compile", "set compile=false", backend)
    setattr(torch._dynamo.config, ONCE, True)
    for model in models:
        compilation.compile_blocks(model, backend)


@cache
def check_compiler(key: str, remedy: str, backend: Backend = "inductor") -> None:
    """Refuse what is compiled on a machine where nothing can be.

    Args:
        key: What was asked for, for the error.
        remedy: What to do without, for the error.
        backend: Of torch.compile.

    Raises:
        UserError: Compilation does not work here (no C++ compiler, as a rule).
    """
    try:
        torch.compile(torch.sin, backend=backend)(torch.zeros(1))
    except Exception as error:  # inductor fails in many ways
        raise UserError(f"{key}: torch.compile does not work here ({error_line(error)}); {remedy}") from error
