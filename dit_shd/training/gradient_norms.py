"""The norm of each term's gradient in the student, weight included."""

import torch
from torch import Tensor, nn

from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.teachers import Teachers
from dit_shd.tasks import Batch


def gradient_norms(
    distiller: Distiller, batch: Batch, teachers: nn.Module | Teachers | None, scale: float = 1.0
) -> dict[str, Tensor]:
    """Norms over all parameters of the student, by `<pass>/<term>`, of one batch; no gradient is left behind.

    Costs a forward, and a backward for each term.

    Args:
        distiller: Student and losses, not wrapped in DDP.
        batch: One pass.
        teachers: Frozen models by name, or a single one.
        scale: Of a term while its gradient is taken, as in training: small gradients would be 0 in fp16.
    """
    parameters = [p for p in distiller.student.parameters() if p.requires_grad]
    terms, _ = distiller.terms(batch, teachers)
    norms: dict[str, Tensor] = {}
    for name, term in terms.items():
        reached = term.requires_grad  # a loss may train its own projector only, or nothing at all
        gradients = (
            torch.autograd.grad(term * scale, parameters, retain_graph=True, allow_unused=True) if reached else ()
        )
        squares = [(gradient.float() / scale).square().sum() for gradient in gradients if gradient is not None]
        norms[f"{batch.pass_name}/{name}"] = torch.stack(squares).sum().sqrt() if squares else term.new_zeros(())
    return norms
