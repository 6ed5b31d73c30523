"""Figures of a teacher by numpy's least squares, and how many images are enough."""

import numpy as np
import pytest
import torch

from dit_shd.diffusion import teacher_check
from dit_shd.diffusion.label_teacher_check import LabelTeacherCheck


def test_the_linear_prediction_is_the_least_squares_one():
    """By numpy's lstsq, of two channels of other size and mean apart."""
    r = np.random.default_rng(0)
    x_0, noise = r.normal([1, -3], [2, 0.3], (40, 6, 6, 2)).transpose(0, 3, 1, 2), r.normal(size=(40, 2, 6, 6))
    x_t, levels = 0.6 * x_0 + 0.8 * noise, torch.arange(40) % 6
    batch = type("B", (), {"x_t": torch.tensor(x_t), "noise": torch.tensor(noise)})()
    sums = teacher_check.Sums.empty(2)
    for part in (slice(0, 12), slice(12, 40)):
        piece = type("B", (), {"x_t": batch.x_t[part], "noise": batch.noise[part]})()
        sums.add(piece, piece.noise * 0.5, levels[part])
    for level in range(6):
        errors = []
        for c in range(2):
            x, e = x_t[levels == level][:, c].ravel(), noise[levels == level][:, c].ravel()
            design = np.stack([x, np.ones_like(x)], 1)
            errors.append(np.square(e - design @ np.linalg.lstsq(design, e, rcond=None)[0]).mean())
        assert sums.linear()[level] == pytest.approx(np.mean(errors), rel=1e-9)
    assert sums.measurement(40, LabelTeacherCheck.words).scale.tolist() == pytest.approx([2.0] * 6)


@pytest.mark.parametrize(
    ("wrong", "none", "is_clear"),
    [(4.0, 0.0, True), (3.9, 9.0, False), (9.0, -0.1, False), (9.0, -5.9, False), (9.0, -6.0, True), (0.0, -6.0, True)],
)
def test_conditions_are_clear_where_both_comparisons_are(wrong, none, is_clear):
    """Better than wrong ones without being worse than none, or far worse than none; between them more images decide."""
    right = torch.tensor([0.5]), torch.tensor([1.0])
    measured = teacher_check.TeacherMeasurement(LabelTeacherCheck.words, *right, 96, wrong, none)
    assert measured.conclusive() == is_clear
