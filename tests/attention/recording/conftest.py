"""What tests of recorded attention begin with."""

import pytest
import torch


@pytest.fixture
def seeded():
    """Modules and inputs that a test draws are the same in every run."""
    torch.manual_seed(0)
