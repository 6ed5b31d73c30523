"""Projectors: what brings a student's features to the width of its teacher's, learned and then thrown away."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dit_shd.attention.tiles import full_precision
from dit_shd.core.errors import UserError
from dit_shd.core.precision import wide_dtype

Kind = Literal["linear", "mlp", "none"]


def check_kind(name: str, kind: str) -> Kind:
    """A kind of projector that exists.

    Args:
        name: The name of the loss, for the error.
        kind: As a config says.

    Raises:
        UserError: There is none such.
    """
    if kind not in get_args(Kind):
        raise UserError(f"losses.{name}.projector: wanted one of {', '.join(get_args(Kind))}, found '{kind}'")
    return kind  # type: ignore[return-value]


def projector(name: str, kind: Kind, student: Tensor, teacher: Tensor) -> nn.Module:
    """A map of tokens [...,e] from one width to another, on the student's device.

    Args:
        name: The name of the loss, for the error.
        kind: `linear`; `mlp`, two linear maps with SiLU between, as wide inside as the wider side; `none`.
        student: Its features [...,e_s].
        teacher: Its features [...,e_t]; for none of the same width.

    Raises:
        UserError: None, and two widths.
    """
    inputs, outputs = student.shape[-1], teacher.shape[-1]
    if kind == "none" and inputs != outputs:
        raise UserError(
            f"losses.{name}.projector: none wants equal widths, found {inputs} and {outputs} of the teacher; any "
            "widths: linear, mlp, or the loss self_correlation"
        )
    with torch.device(student.device):
        if kind == "linear":
            return nn.Linear(inputs, outputs)
        inside = max(inputs, outputs)
        layers = [nn.Linear(inputs, inside), nn.SiLU(), nn.Linear(inside, outputs)] if kind == "mlp" else []
        return nn.Sequential(*layers)


def projected(module: nn.Module, x: Tensor) -> Tensor:
    """What a learned map gives for x, in the map's precision, whatever the model's is; under autocast as that decides.

    Args:
        module: Of one precision, or without weights.
        x: Its input, of a model that may be in bfloat16 as a whole.
    """
    weight = next(module.parameters(), None)
    return module(x if weight is None else x.to(weight.dtype))


class Orthonormal(nn.Module):
    """x P^T with P [e_t,e_s] of orthonormal columns, which keeps lengths and angles (VkD, arXiv 2403.06213, eq. 6).

    P is Q of the decomposition QR of a free matrix, with a positive diagonal of R, so that it moves smoothly with it.

    Args:
        student: e_s, at most e_t.
        teacher: e_t.
        like: A tensor on the device where it is to be.

    Raises:
        UserError: A student that is wider than its teacher.
    """

    def __init__(self, student: int, teacher: int, like: Tensor):
        super().__init__()
        if student > teacher:
            raise UserError(
                f"orthonormal columns want a student no wider than its teacher, found {student} and {teacher}"
            )
        self.free = nn.Parameter(torch.randn(teacher, student, device=like.device) / teacher**0.5)

    @property
    def weight(self) -> Tensor:
        """P [e_t,e_s], in float32 or wider."""
        with full_precision(self.free.device):
            free = self.free.to(wide_dtype(self.free))
            q, r = torch.linalg.qr(free)
            return q * r.diagonal().sign().where(r.diagonal() != 0, torch.ones_like(r.diagonal()))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [...,e_t] of tokens [...,e_s]."""
        return nn.functional.linear(x, self.weight.to(x.dtype))
