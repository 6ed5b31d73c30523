"""What can be taken up again: the bar of its progress."""

import warnings

from dit_shd.core.resumable import Progress


def test_a_bar_stays_within_its_total():
    """Eleven predictions of two images each share out slightly more than the two."""
    with Progress("sampling", 2, lambda: 0, shown=True) as progress, warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(11):
            progress.step(2 / 11 + 1e-3)
        assert progress.bar.n == 2
        assert "2/2 images" in str(progress.bar)
