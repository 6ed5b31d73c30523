"""Plans: partitions of teacher heads, as users write them."""

import numpy as np
import pytest
import torch

from dit_shd import SHD
from dit_shd.core.errors import UserError
from dit_shd.squeezing.plans import groups_of


@pytest.mark.parametrize(
    "plan", [np.array([[0, 2], [1, 3]]), torch.tensor([[0, 2], [1, 3]]), [np.array([0, 2]), (1, 3)]]
)
def test_a_plan_may_be_an_array(plan):
    """SHD asked an array whether it is `matched`, which is neither true nor false."""
    assert groups_of(plan) == SHD(plan=plan).squeezer.plan == ((0, 2), (1, 3))


@pytest.mark.parametrize("plan", [3, None, [0, 1], [[0, 1.0]], [[0, "1"]], [[0, True]]])
def test_what_is_no_list_of_groups_is_named(plan):
    with pytest.raises(UserError, match="squeeze: plan: wanted a list of groups of head numbers, found "):
        SHD(plan=plan)
