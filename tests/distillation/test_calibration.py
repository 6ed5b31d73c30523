"""What losses are calibrated on before a run."""

import torch
from small_steps import SMALL, batch_of

from dit_shd.distillation.calibration import calibrate
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import LayerLoss
from dit_shd.models.families.mdt import MDTv2
from dit_shd.tasks.diffusion import Diffusion


class Noted(LayerLoss):
    """Notes what it is calibrated on."""

    calibration = 1

    def __init__(self):
        super().__init__()
        self.batches = []

    def pair(self, student, teacher, batch):
        raise NotImplementedError

    def calibrate(self, teacher, student, batch=None):
        self.batches.append(batch)


def test_losses_are_calibrated_with_the_batch_whose_rows_count():
    student, teacher = (MDTv2(**SMALL, num_attention_heads=heads) for heads in (2, 4))
    loss, batch = Noted(), batch_of(torch.randn(2, 1, 8, 8), [3, 800], [0, 1])
    calibrate(Distiller(Diffusion(), student, [loss]), teacher, [[batch], [batch]])
    assert loss.batches == [batch], "one step, as the loss says"
