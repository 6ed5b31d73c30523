"""What all sources share."""

import numpy as np

from dit_shd.data.sources.base import SequentialRows


def test_reading_forward_is_reading_by_number():
    begun = []

    def read(first):
        begun.append(first)
        return iter(range(first, 100))

    rows = SequentialRows(lambda number: number // 10 * 10, read)
    r = np.random.default_rng(0)
    for number in [*range(20), 25, 29, 21, *r.integers(0, 100, 50).tolist()]:
        assert rows[number] == number
    assert begun[:2] == [0, 20], "in order nothing is read twice"
