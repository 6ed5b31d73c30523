"""Prefetching by a thread."""

import pytest

from dit_shd.core.prefetch import prefetch


def test_prefetching_keeps_the_order_and_the_errors():
    def make_one(x):
        if x == 3:
            raise ValueError("three")
        return x * x

    iterator = prefetch(make_one, range(5))
    assert [next(iterator) for _ in range(3)] == [0, 1, 4]
    with pytest.raises(ValueError, match="three"):
        next(iterator)
    assert list(prefetch(make_one, range(3))) == [0, 1, 4]
    assert list(prefetch(make_one, [])) == []
