"""A small student, two teachers and a batch."""

import pytest
import torch
from small_distillers import model
from small_steps import batch_of


@pytest.fixture
def student():
    return model(0, 2)


@pytest.fixture
def teachers():
    """Of 4 and of 3 heads; the second is twice as deep."""
    return {"wide": model(1, 4).eval(), "deep": model(2, 3, num_layers=8, decode_layer=4).eval()}


@pytest.fixture
def batch():
    torch.manual_seed(3)
    return batch_of(torch.randn(2, 1, 8, 8), [3, 800], [0, 1])
