"""Sums over tiles: the same whatever the tiles, memory linear in the tokens, forward and backward."""

import subprocess
import sys

import loss_checks as checks
import pytest
import torch
from small_steps import batch_of

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.distillation.losses import LOSSES
from dit_shd.distillation.relations import kl, over_rows, row_mean, row_sample

PEAK = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import loss_checks as checks
from pathlib import Path
torch.set_num_threads(1)
def status(name):
    return int(next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name)).split()[1])
def run(name, n):
    if name == "self_correlation":
        s, t = checks.tokens(16, 1, n, 1, grad=True), checks.tokens(32, 1, n, 1, seed=1)
    else:
        s = checks.captures(2, 1, grad=True, b=1, n=n, m=n, d=8, bias=False)
        t = checks.captures(2 if name == "minilm" else 3, 1, seed=1, b=1, n=n, m=n, d=8, bias=False)
    options = {"heads": "mean"} if name == "tinybert" else {}
    options |= {} if name == "self_correlation" else {"chunk_mib": 8}
    loss = checks.build(name, s, t, **options)
    checks.term(loss, s, t).value.sum().backward()
for name in sys.argv[2:]:
    run(name, 64)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    run(name, 4096)
    print(name, (status("VmHWM") - before) / 1024)
"""


@pytest.mark.parametrize(
    "names",
    [
        ["tinybert", "minilmv2", "self_correlation"],
        pytest.param(["head_mean", "align_to_distill", "minilm"], marks=pytest.mark.slow),
    ],
    ids=", ".join,
)
def test_no_n_by_m_plane_is_ever_held(root, names):
    """At 4,096 tokens forward and backward add less than one plane n x m of float64; whole maps are five or more."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(root / "tests"), *names], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peaks = {name: float(mib) for name, mib in (line.split() for line in done.stdout.splitlines())}
    assert list(peaks) == names
    plane = 8 * 4096**2 / 2**20
    assert all(mib < plane for mib in peaks.values()), peaks


@pytest.mark.parametrize("name", ["tinybert", "head_mean", "align_to_distill", "minilm", "minilmv2", "shd"])
def test_a_budget_of_nothing_is_refused_before_anything_runs(name):
    with pytest.raises(UserError, match="chunk_mib: wanted a memory budget above 0 MiB, found 0"):
        LOSSES.build(Plugin(name, {"chunk_mib": 0.0}), "losses")


def test_tiles_do_not_change_the_result_and_nothing_is_computed_without_need():
    s = checks.captures(2, depth=1, grad=True)
    calls = []

    def tile(captures, learned, rows):
        calls.append(rows)
        return (captures[0].map(rows) * learned[0]).square().sum((1, 2, 3))

    factor = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    found = []
    for mib in (64, 1e-5):
        calls.clear()
        value = over_rows(tile, list(s.values()), 4, [factor], mib).sum(0)
        assert len(calls) == (1 if mib == 64 else 7)
        found.append([value, *torch.autograd.grad(value.sum(), [*checks.leaves(s), factor], allow_unused=True)])
        assert len(calls) == 2 * (1 if mib == 64 else 7)
    for one, other in zip(*found):
        assert (one is None) == (other is None)  # values take no part
        if one is not None:
            torch.testing.assert_close(one, other)
    with torch.no_grad():
        assert not over_rows(tile, list(s.values()), 4, [factor]).requires_grad


def test_gradients_of_many_tiles_are_added_up_in_float32():
    """In bfloat16 a sum of ones ends at 256."""
    s = checks.captures(1, depth=1, b=1, n=300, m=2)
    factor = torch.ones((), dtype=torch.bfloat16, requires_grad=True)
    sizes = []

    def tile(captures, learned, rows):
        sizes.append(rows.stop - rows.start)
        return learned[0] * captures[0].query.new_full((1,), rows.stop - rows.start)

    over_rows(tile, list(s.values()), 1, [factor], 1e-9).sum().backward()
    assert {*sizes} == {1} and factor.grad.item() == 300


def test_rows_without_weight_do_not_count_whatever_they_are_and_equal_maps_give_nothing():
    terms, weight = torch.tensor([[torch.inf, 3.0], [torch.nan, 6.0]]), torch.tensor([[1.0, 0, 2], [1, 0, 0]])
    assert row_mean(terms, slice(1, 3), 3, weight).tolist() == [2, 0]
    assert row_mean(terms[:, 1:], slice(2, 3), 3, None).tolist() == [1, 2]
    for small in (1e-3, 1e-12, 0.0):
        a = torch.tensor([0.5, 0.5 - small, small], dtype=torch.float64)
        assert kl(a, a.log()).abs() < 1e-16


def test_rows_are_drawn_by_seed_step_batch_and_layer_and_all_of_them_as_often():
    def drawn(share=0.26, seed=0, purpose="a", step=5, first=3):
        batch = batch_of(torch.zeros(1, 1, 2, 2), [5], [0], step, first)
        return row_sample(share, 10, seed, purpose, batch).tolist()

    def many(**changes):
        """Of ten steps."""
        return [drawn(step=step, **changes) for step in range(10)]

    assert many() == many() and all(rows == sorted({*rows}) and len(rows) == 3 for rows in many())
    assert len(drawn(0.001)) == 1
    for changes in ({"seed": 1}, {"purpose": "b"}, {"first": 4}):
        assert many(**changes) != many(), changes
    torch.manual_seed(0)
    alone = [row_sample(0.26, 10, 0, "a", None) for _ in range(600)]
    for draws in ([torch.tensor(drawn(step=step)) for step in range(600)], alone):
        counts = torch.cat(draws).bincount(minlength=10)
        assert counts.sum() == 1800 and (counts - 180).abs().max() < 60  # 5 standard deviations
