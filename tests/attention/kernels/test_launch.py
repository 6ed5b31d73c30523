"""Attention by Triton kernels: float64's values and gradients, one operator to torch.compile, inside its tensors.

On a GPU if there is one, else in Triton's interpreter, which runs programs one after another.
"""

import mmap
import sys

import oracle
import pytest
import torch
from guarded_memory import Guarded, in_a_process_of_its_own
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_captures import random_capture

from dit_shd.attention.bias import DenseBias
from dit_shd.attention.capture import Capture
from dit_shd.attention.kernels.captures import attention, operators, side_of
from dit_shd.attention.relative_bias import RelativeBias

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WINDOW = 4
torch_alone = pytest.mark.skipif(
    DEVICE == "cuda", reason="of torch.compile, not of a device: the tests on a CPU run it"
)
walled = pytest.mark.skipif(DEVICE == "cuda", reason="pages are protected in a CPU's memory, in the interpreter")
KINDS = ["none", "dense", "row", "mask", "grid", "tokens"]


def layer(kind, n=18, m=18, h=4, keys=None, d=5, width=5, dtype=torch.float32, causal=False, seed=0):
    """Query, key, value, bias, causality of a layer, and the bias written out [b,h,n,m]."""
    r = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=r).to(DEVICE)

    if kind in ("grid", "tokens"):
        n = m = WINDOW**2 if kind == "grid" else min(n, WINDOW**2)
    query, key, value = draw(2, h, n, d), draw(2, keys or h, m, d), draw(2, keys or h, m, width)
    bias = None
    if kind in ("dense", "row"):
        bias = DenseBias(draw(1, h, n, m) if kind == "dense" else draw(2, 1, 1, m))
    if kind == "mask":
        hidden = draw(2, 1, n, m) < -0.5
        hidden[:, :, n // 2] = True
        bias = DenseBias(draw(2, 1, n, m).masked_fill(hidden, -torch.inf))
    if kind in ("grid", "tokens"):
        places = draw(2, WINDOW**2).argsort(1)[:, :n].sort(1).values
        code = RelativeBias.codes(WINDOW).to(DEVICE)[places] if kind == "tokens" else None
        bias = RelativeBias(draw((2 * WINDOW - 1) ** 2 + 3, h), WINDOW, code)
    return [x.to(dtype) for x in (query, key, value)], bias, causal


def with_gradients(run, tensors, bias, upstream):
    """Output and gradients by query, key, value and the bias's leaf."""
    tensors = [x.detach().clone().requires_grad_() for x in tensors]
    leaves = [] if bias is None else [x.detach().clone().requires_grad_() for x in bias.leaves]
    out = run(*tensors, None if bias is None else bias.rebuilt(leaves))
    return [out, *torch.autograd.grad(out, [*tensors, *leaves], upstream.to(out.dtype))]


def exact(tensors, bias, causal, upstream, scale, output):
    """The same in float64, but for the output, which the gradients of scores read as it was stored.

    dS = A (dA - sum(dO O)) is a difference of near numbers where a row has few keys: of one key it is 0, and rounding.
    """
    query, key, value = (x.double() for x in tensors)
    shared = query.shape[1] // key.shape[1]
    keys, values, upstream = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1), upstream.double()
    leaves = [] if bias is None else [x.detach().double().requires_grad_() for x in bias.leaves]
    added = None if bias is None else bias.rebuilt(leaves).rows(slice(None))
    maps = oracle.maps(query, keys, scale, None if added is None else added.detach(), causal).nan_to_num()
    out = maps @ values
    stored = (upstream * output.double()).sum(-1, keepdim=True)
    of_scores = maps * (upstream @ values.transpose(2, 3) - stored)
    of_heads = scale * of_scores.transpose(2, 3) @ query, maps.transpose(2, 3) @ upstream
    of_keys = [x.unflatten(1, (key.shape[1], shared)).sum(2) for x in of_heads]
    of_leaves = [] if added is None else torch.autograd.grad(added.expand_as(of_scores), leaves, of_scores)
    return [out, scale * of_scores @ keys, *of_keys, *of_leaves]


def check(tensors, bias, causal, tolerance):
    """Close to float64, in relation to the norm of each tensor."""
    scale, shape = 0.6, (*tensors[0].shape[:3], tensors[2].shape[3])
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, tensors[0].dtype)
    values = with_gradients(lambda *x: attention(*x[:3], scale, x[3], causal), tensors, bias, upstream)
    assert values[0].dtype == tensors[0].dtype
    wants = exact(tensors, bias, causal, upstream, scale, values[0].detach())
    rounding = 1e-6 * (1 + wants[3].norm())
    for value, want in zip(values, wants, strict=True):
        assert value.isfinite().all()
        assert (value.double() - want).norm() <= tolerance * want.norm() + rounding


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_float64(kind, dtype):
    """bfloat16: rounding of maps and of gradients of scores to 8 bits, as in every such kernel."""
    check(*layer(kind, dtype=dtype), tolerance=1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize(
    "options",
    [
        dict(kind="none", causal=True, n=40, m=40),
        dict(kind="dense", causal=True, n=33, m=35),
        dict(kind="dense", keys=2, n=9, m=37),
        dict(kind="none", d=72, width=3, n=5, m=70),
    ],
    ids=lambda options: " ".join(f"{k}={v}" for k, v in options.items()),
)
def test_causal_shared_and_wide(options):
    check(*layer(**options), tolerance=1e-5)


@pytest.mark.slow
@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_shape_at_length(data):
    draw = data.draw
    h, dtype = draw(st.integers(1, 6)), draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    n, m = draw(st.integers(1, 150)), draw(st.integers(1, 150))
    tensors, bias, causal = layer(
        draw(st.sampled_from(KINDS)), n, m, h, draw(st.sampled_from([k for k in range(1, h + 1) if h % k == 0])),
        draw(st.integers(1, 80)), draw(st.integers(1, 80)), dtype, draw(st.booleans()) and n <= m,
        draw(st.integers(0, 99)),
    )  # fmt: skip
    check(tensors, bias, causal, tolerance=1e-4 if dtype == torch.float32 else 5e-2)


@torch_alone
@pytest.mark.parametrize("kind", ["dense", "grid", "tokens"])
def test_compiled_code_has_one_operator_and_no_graph_break(kind):
    tensors, bias, _ = layer(kind)
    upstream = torch.ones_like(tensors[0])

    def run(query, key, value, leaf):
        return attention(query, key, value, 0.6, bias.rebuilt([leaf]))

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    results = [
        with_gradients(lambda q, k, v, b: function(q, k, v, b.leaves[0]), tensors, bias, upstream)  # noqa: B023
        for function in (run, compiled)
    ]
    torch.testing.assert_close(*results)


@torch_alone
@pytest.mark.parametrize("kind", ["grid", pytest.param("tokens", marks=pytest.mark.slow)])
def test_fake_tensors_have_the_shapes_of_real_ones(kind):
    teacher = random_capture(h=4, dtype=torch.float32)
    partners, heads = torch.tensor([[0, 1], [3, 2]], dtype=torch.int32), torch.tensor([1, 2], dtype=torch.int32)
    checks = ("test_schema", "test_faketensor")
    arguments = (*side_of(teacher, 1.0).values(), teacher.value, heads, partners)
    torch.library.opcheck(operators.attend, arguments, test_utils=checks)
    tensors, bias, _ = layer(kind)
    code = RelativeBias.codes(WINDOW)[None] if bias.code is None else bias.code
    arguments = (*(x.requires_grad_() for x in tensors), bias.leaves[0].requires_grad_(), code, code)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_static")
    torch.library.opcheck(operators.attention, (*arguments, kind, WINDOW, False, 0.6), test_utils=checks)


def heads_far_apart():
    """Heads that lie 2^30 numbers apart, in memory that is reserved alone: the third one is 2^31 on."""
    reserved = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python names it from 3.13 on
    far = mmap.mmap(-1, 2 * (2**31 + 64), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | reserved)
    query = torch.frombuffer(far, dtype=torch.float16).as_strided((1, 3, 5, 4), (0, 2**30, 4, 1))
    near, key, value = torch.randn(3, 1, 3, 5, 4, generator=torch.Generator().manual_seed(0)).half()
    query.copy_(near)
    assert torch.equal(attention(query, key, value, 0.5, None), attention(near, key, value, 0.5, None))


@pytest.mark.skipif(DEVICE == "cuda" or sys.platform != "linux", reason="of a CPU's memory on Linux")
def test_heads_are_counted_in_64_bits():
    done = in_a_process_of_its_own(__file__, "heads_far_apart()")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("kind", ["dense", "grid"])
def test_tensors_on_another_gpu_than_the_current_one(kind):
    tensors, bias, _ = layer(kind)
    upstream = torch.ones_like(tensors[0])
    there = [x.to("cuda:1") for x in tensors], bias.rebuilt([x.to("cuda:1") for x in bias.leaves])
    found, want = (
        with_gradients(lambda *x: attention(*x[:3], 0.6, x[3]), *both, upstream.to(both[0][0].device))
        for both in (there, (tensors, bias))
    )
    torch.testing.assert_close([x.to("cuda:0") for x in found], want)


def inside_their_tensors(before):
    """Every kernel with all its tensors at walls; whoever reads or writes beyond one is killed."""
    guarded = Guarded(before)
    r = torch.Generator().manual_seed(0)

    def draw(*shape):
        return guarded.moved(torch.randn(*shape, generator=r))

    code = guarded.moved(RelativeBias.codes(WINDOW)[None])
    leaves = {"none": torch.empty(0), "dense": draw(1, 1, 5, 5), "grid": draw(52, 3), "tokens": draw(52, 3)}
    for kind, n, causal in (("none", 37, True), ("dense", 5, False), ("grid", 16, False), ("tokens", 16, False)):
        tensors = draw(1, 3, n, 7), draw(1, 3, n, 7), draw(1, 3, n, 5), leaves[kind]
        codes = [code[:, :0] if kind in ("none", "dense") else code] * 2
        facts = (kind, WINDOW if codes[0].numel() else 1, causal, 0.6)
        capture = Capture(*tensors[:3], 0.6, causal=causal)
        partners, heads = guarded.moved(torch.tensor([[0, 1, 2, -1]] * 3).int()), guarded.moved(torch.arange(3).int())
        with guarded:
            out, top, inverse = operators.attention._init_fn(*tensors, *codes, *facts)
            operators.attention_backward._init_fn(
                draw(*out.shape), *tensors, *codes, out, top, inverse, *facts, kind != "none"
            )
            operators.attend._init_fn(**side_of(capture, 1.0), value=capture.value, heads=heads, partners=partners)


@walled
@pytest.mark.parametrize("before", [False, True])
def test_nothing_is_read_or_written_outside_of_the_tensors(before):
    done = in_a_process_of_its_own(__file__, f"inside_their_tensors({before})")
    assert done.returncode == 0, done.stderr[-2000:]
