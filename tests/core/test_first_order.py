"""Gradients of gradients, of which a loss whose backward has no graph would have no part."""

import pytest
import torch
from random_captures import random_capture

from dit_shd import SHD
from dit_shd.core.errors import UserError


def test_gradients_of_gradients_are_refused():
    """They lacked SHD's part, without a word."""
    teacher, student = random_capture(h=4, bias=False), random_capture(h=2, bias=False, seed=1)
    query = student.query.requires_grad_()
    loss = SHD()({"a": teacher}, {"a": student})
    with pytest.raises(UserError, match=r"gradients of gradients \(create_graph=True\)"):
        torch.autograd.grad(loss, query, create_graph=True)
    assert torch.autograd.grad(loss, query)[0].abs().max() > 0
