"""Several teachers as one: the mean of their outputs, as in BabyLLaMA (arXiv 2308.02019), which averages logits."""

from collections.abc import Sequence

import torch

from dit_shd.core.errors import UserError
from dit_shd.diffusion.guidance import Guidance
from dit_shd.distillation.losses import Loss
from dit_shd.distillation.records import Forward, Term
from dit_shd.tasks import Batch


class OutputOf(Loss):
    """Reads what one of several teachers predicts, and keeps it for the mean.

    Args:
        guidance: The guidance of the teacher, as the loss wants it.
    """

    def __init__(self, guidance: Guidance | None = None) -> None:
        super().__init__()
        self.guidance = guidance
        self.output: Forward | None = None

    def term(self, student: Forward, teacher: Forward, batch: Batch) -> Term:
        """0: it is no loss."""
        self.output = teacher
        return Term(teacher.prediction.new_zeros(1))


def mean(read: Sequence[OutputOf]) -> Forward:
    """The mean prediction of teachers that have run.

    Raises:
        UserError: They predict tensors of different shapes.
    """
    predictions = [one.output.prediction for one in read if one.output is not None]
    shapes = {tuple(prediction.shape) for prediction in predictions}
    if len(shapes) > 1:
        raise UserError(
            f"teacher: the mean of several needs outputs of one shape, found {' and '.join(map(str, sorted(shapes)))}; "
            "of language models: the same tokenizer"
        )
    return Forward(torch.stack(predictions).mean(0))
