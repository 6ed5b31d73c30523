"""Blocks by GPU; that they fit is compiled in tests/squeezing/kernels/test_launch.py."""

import pytest

from dit_shd.attention.kernels.blocks import Blocks


@pytest.mark.parametrize(("capability", "warps"), [(8, 8), (9, 4), (10, 4), (11, 4), (12, 8)])
def test_more_warps_share_a_block_where_products_take_their_registers(capability, warps):
    assert Blocks(64, 32, 4, 2).on(capability) == Blocks(64, 32, warps, 2)
    assert Blocks(16, 16, 4, 1).on(capability).warps == 4, "a small block has registers enough"
    assert Blocks(64, 32, 8, 2).on(capability).warps == 8
    other = Blocks(64, 64, 4, 2, by_warp=Blocks(64, 32, 8, 1))
    assert other.on(capability) == (other if warps == 4 else other.by_warp)
