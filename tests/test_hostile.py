"""Hostile and broken input, class by class; see tests/hostile."""

import pytest
from hostile import all_classes, outcomes

CLASSES = {cls.name: cls for cls in all_classes()}


def test_there_are_three_hundred_cases_or_more():
    assert sum(cls.count for cls in CLASSES.values()) >= 300


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_bad_input_is_refused_in_a_line(name, every):
    """A third of the cases always, all in the slow tests."""
    numbers = range(0, CLASSES[name].count, every)
    found = outcomes(CLASSES[name], numbers)
    assert found["refused"] > 0
    assert sum(found.values()) == len(numbers)
