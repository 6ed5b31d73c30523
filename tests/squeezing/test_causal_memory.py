"""Causal maps of 4,096 tokens: alpha, divergence and gradients in less memory than one map of one head takes."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from dit_shd.attention.capture import Capture
from dit_shd.squeezing.divergence import attention_kl
from dit_shd.squeezing.squeeze import squeeze
torch.set_num_threads(1)
backend, rows = sys.argv[1], sys.argv[2] == "rows"
def layer(heads, n, grad=False):
    q, k, v = (torch.randn(1, heads, n, 8, requires_grad=grad) for _ in range(3))
    return Capture(q, k, v, 8**-0.5, None, True, torch.randn(heads, 8, 16) if not grad else None)
def run(n):
    teacher, student = layer(4, n), layer(2, n, grad=True)
    weight = (torch.arange(n) % 3 > 0).float()[None] if rows else None
    squeezed = squeeze(teacher, 2, backend=backend, chunk_mib=4, row_weight=weight)
    attention_kl(teacher, student, squeezed, backend=backend, chunk_mib=4, row_weight=weight).sum().backward()
    assert student.query.grad.isfinite().all()
run(256)  # what torch itself takes at its first use
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(4096)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
ONE_MAP_KIB = 4096**2 * 4 / 1024


@pytest.mark.parametrize(("backend", "rows"), [("streamed", "rows"), ("fused", "none")])
def test_the_peak_is_below_one_map(root, backend, rows):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, backend, rows], capture_output=True, text=True, cwd=root, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < ONE_MAP_KIB / 2
