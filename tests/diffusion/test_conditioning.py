"""What a model takes against what the data are."""

import numpy as np
import pytest
import torch
from small_families import build

from dit_shd.core.errors import UserError
from dit_shd.data.datasets.npz import Npz
from dit_shd.diffusion.conditioning import check_fit, check_labels


@pytest.mark.parametrize(
    ("shape", "advice"),
    [((8, 8, 1), r"\(8, 8, 1\); channels come first in float latents, \[n,c,y,x\]$"), ((1, 8, 10), r"\(1, 8, 10\)$")],
)
def test_channels_that_come_last_are_told_of(tmp_path, shape, advice):
    np.savez(tmp_path / "x.npz", np.zeros((4, *shape), np.float32), np.zeros(4, int))
    with pytest.raises(UserError, match=r"^student: takes latents of shape \(1, 8, 8\), the data's are " + advice):
        check_fit("student", build("dit"), Npz(tmp_path / "x.npz"))


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_of_no_class_is_refused(tmp_path, label):
    """Of one's own dataset: `classes` is what a model takes for "no class", so that nothing would have been said."""
    np.savez(tmp_path / "x.npz", np.zeros((3, 1, 8, 8), np.float32), np.arange(3))
    data = Npz(tmp_path / "x.npz")
    check_labels(data, torch.arange(3))
    with pytest.raises(UserError, match=rf"^data: Npz says that it has 3 classes, so wanted .* 0 to 2, found {label}$"):
        check_labels(data, torch.tensor([0, label]))
