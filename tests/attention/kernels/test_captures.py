"""Attention by kernels where it works, and streamed with one line in the log where it does not."""

import logging

import pytest
import torch
import torch.utils.checkpoint

from dit_shd.attention.bias import DenseBias
from dit_shd.attention.kernels import captures
from dit_shd.attention.relative_bias import RelativeBias
from dit_shd.attention.streamed import attend
from dit_shd.models.families.mdt import MDTBlock

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WINDOW = 4


@pytest.fixture
def served(monkeypatch):
    """The kernels serve on a CPU, too, in the interpreter; counts the calls."""
    calls = []
    attention = captures.attention
    monkeypatch.setattr(captures, "serves", lambda *tensors: True)
    monkeypatch.setattr(captures, "attention", lambda *given: calls.append(1) or attention(*given))
    return calls


def table(heads):
    return torch.randn((2 * WINDOW - 1) ** 2 + 3, heads, generator=torch.Generator().manual_seed(2)).to(DEVICE)


@pytest.mark.parametrize("kept", [False, True])
def test_attend_is_the_streamed_form_by_kernels(served, kept, monkeypatch):
    r = torch.Generator().manual_seed(0)
    n = 11 if kept else WINDOW**2
    draws = [torch.randn(2, 3, n, 8, generator=r).to(DEVICE) for _ in range(3)]
    code = None
    if kept:
        places = torch.stack([torch.randperm(16, generator=r)[:n] for _ in range(2)])
        code = RelativeBias.codes(WINDOW)[places].to(DEVICE)
    results = []
    for by_kernels in (True, False):
        monkeypatch.setattr(captures, "serves", lambda *given, which=by_kernels: which)
        leaves = [x.clone().requires_grad_() for x in (*draws, table(3))]
        out = attend(*leaves[:3], 0.4, RelativeBias(leaves[3], WINDOW, code))
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    assert len(served) == 1
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-4)


def test_a_block_with_a_learnable_bias_compiles_into_one_graph(served):
    torch.manual_seed(0)
    block = MDTBlock(24, 3, WINDOW, 2.0).to(DEVICE)
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x, condition = torch.randn(2, 16, 24, device=DEVICE), torch.randn(2, 24, device=DEVICE)
    want = block(x, condition)
    torch._dynamo.reset()
    value = torch.compile(block, fullgraph=True, backend="aot_eager")(x, condition)
    leaf = block.attn.rel_pos_bias.relative_position_bias_table
    torch.testing.assert_close(value, want, rtol=1e-5, atol=1e-4)
    grads = (torch.autograd.grad(y.square().sum(), leaf) for y in (value, want))
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
    assert len(served) >= 2


def test_a_kernel_that_fails_is_one_line_in_the_log(monkeypatch, caplog):
    def broken(*given):
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(captures, "attention", broken)
    captures._works.cache_clear()
    with caplog.at_level(logging.WARNING, "dit_shd"):
        for _ in range(2):
            assert not captures._works(torch.device("cpu"), torch.float32, 8, 8, "RelativeBias")
    captures._works.cache_clear()
    assert [r.getMessage() for r in caplog.records] == [
        "attention by Triton kernels fails on cpu (no compiler here): it is streamed"
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU")
def test_a_trial_of_kernels_that_work_passes():
    for bias in ("RelativeBias", "DenseBias"):
        assert captures._works(torch.device("cpu"), torch.float32, 8, 5, bias)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU")
def test_a_trial_in_inference_mode_passes():
    """As a sampler's first call: a trial that failed there would be remembered for training, too."""
    captures._works.cache_clear()
    with torch.inference_mode():
        assert captures._works(torch.device("cpu"), torch.float32, 8, 8, "DenseBias")


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU")
def test_a_trial_in_a_block_that_is_recomputed_is_no_part_of_it():
    """As the first step of a model whose blocks are recomputed: the second run of the block has no trial."""
    captures._works.cache_clear()

    def block(x):
        assert captures._works(torch.device("cpu"), torch.float32, 8, 8, "RelativeBias")
        return x.sin()

    x = torch.ones(2, requires_grad=True)
    torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(2).cos())


def test_what_does_not_fit_is_refused_and_not_read_beyond_its_end():
    q, k, v = (torch.zeros(1, 2, 8, 4, device=DEVICE) for _ in range(3))
    for bias in (DenseBias(torch.zeros(1, 1, 4, 8, device=DEVICE)), RelativeBias(table(2), WINDOW)):
        with pytest.raises(ValueError, match=r"wanted a bias that broadcasts to \[1, 2, 8, 8\], found"):
            captures.attention(q, k, v, 1.0, bias)
    with pytest.raises(ValueError, match="wanted query"):
        captures.attention(q, k, v[:, :, :5], 1.0, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU")
def test_more_than_a_grid_or_32_bits_can_count_is_refused():
    def of(*shape, stride=None):
        return torch.empty_strided(shape, stride or torch.empty(shape, device="meta").stride(), device="meta")

    q, k = of(1, 2, 3, 4), of(1, 2, 50000, 4)
    assert captures.why_not(q, k, k, None) is None
    assert captures.why_not(q, k, k, DenseBias(of(1, 2, 1, 50000))) is None
    assert "65535 samples, these are 65536" in captures.why_not(*(of(65536, 2, 3, 4) for _ in range(3)), None)
    for bias in (of(1, 1, 50000, 50000), of(1, 1, 3, 4, stride=(0, 0, 2**30, 1))):
        assert "2^31 apart" in captures.why_not(k, k, k, DenseBias(bias))
    far = of(1, 2, 3, 4, stride=(0, 4, 2**30, 1))
    assert "2^31 apart" in captures.why_not(far, q, q, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU")
def test_the_interpreter_is_not_chosen():
    x = torch.zeros(1, 1, 4, 8)
    assert captures.why_not(x, x, x, DenseBias(torch.zeros(1, 1, 4, 4))) is None
    assert not captures.serves(x, x, x, DenseBias(torch.zeros(1, 1, 4, 4)))
