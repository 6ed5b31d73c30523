"""Losses of a run: their weights over its steps, and whether their teacher is of use."""

import dataclasses

import pytest

from dit_shd import SHD
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.distillation.initialisation.initialise import Initialisation
from dit_shd.distillation.losses import Loss, Term
from dit_shd.distillation.losses.output import Output
from dit_shd.training import checks
from dit_shd.training.config import TrainConfig


class Smooth(Loss):
    """Of the student alone."""

    reads = frozenset()

    def term(self, student, teacher, batch):
        return Term(student.prediction.square().flatten(1).mean(1))


@pytest.mark.parametrize(
    ("weight", "steps", "heaviest"),
    [
        (0.0, 9, 0.0),
        (2.0, 1, 2.0),
        ({0: 0.0, 10: 2.0}, 6, 1.0),
        ({5: 0.0, 6: 3.0, 7: 0.0}, 9, 3.0),
        ({5: 0.0, 9: 1}, 6, 0.0),
    ],
)
def test_the_heaviest_weight_of_a_run(weight, steps, heaviest):
    loss = Smooth(weight)
    assert loss.heaviest(steps) == max(loss.weight_at(step) for step in range(steps)) == heaviest


def test_a_teacher_must_be_of_use(values, caplog):
    """With all weights 0 it is run for the logs, which is said."""
    config = make(TrainConfig, values)
    checks.teaching(config, [Smooth(), Output()])
    checks.teaching(dataclasses.replace(config, losses=[], initialisation=Initialisation(weights="teacher")), [])
    checks.teaching(dataclasses.replace(config, losses=[], teacher=None), [])
    assert not caplog.records
    with pytest.raises(UserError, match="no loss reads it"):
        checks.teaching(config, [Smooth()])
    checks.teaching(config, [Output(0.0), SHD(weight={10**6: 0.0, 2 * 10**6: 1.0})])
    assert "the weights are 0 in all 4 steps (output, shd), so nothing is learned from the teacher" in caplog.text
