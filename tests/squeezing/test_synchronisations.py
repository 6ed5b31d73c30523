"""A GPU is not waited for: no number of a layer is read by Python in a step; and without those checks NaN stays NaN."""

import dataclasses

import pytest
import torch
from random_captures import random_capture
from torch.utils._python_dispatch import TorchDispatchMode

from dit_shd.attention.relative_bias import RelativeBias
from dit_shd.attention.streamed import attend
from dit_shd.distillation.losses.shd import SHD
from dit_shd.squeezing.divergence import attention_kl
from dit_shd.squeezing.squeeze import squeeze

READS = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero", "aten::equal", "aten::unique2"}


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def on_device(capture):
    """Where Triton's kernels run: on a GPU if there is one, else in the interpreter."""
    tensors = {name: getattr(capture, name).to(DEVICE) for name in ("query", "key", "value", "out")}
    bias = None if capture.bias is None else capture.bias.rebuilt([x.to(DEVICE) for x in capture.bias.leaves])
    return dataclasses.replace(capture, bias=bias, **tensors)


class Reads(TorchDispatchMode):
    """Counts what would make Python wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function._schema.name in READS
        return function(*args, **(kwargs or {}))


def captures(dtype=torch.float32):
    teacher = on_device(random_capture(h=4, dtype=dtype))
    student = on_device(random_capture(h=2, d=3, seed=5, dtype=dtype))
    student.query.requires_grad_()
    return {"layer": teacher}, {"layer": student}


@pytest.mark.parametrize("backend", ["streamed", "fused", "triton"])
@pytest.mark.parametrize("method", ["pairwise", "joint", "per_query", "constant"])
def test_no_number_is_read(backend, method):
    """Groups of two; joint weights of larger groups are searched for. (hard draws its heads on the CPU.)"""
    teacher, student = (side["layer"] for side in captures())
    if backend == "fused":
        student = on_device(random_capture(h=2, d=3, seed=5, dtype=torch.float32, bias=False))
    with Reads() as reads:
        weights = squeeze(teacher, 2, method=method, backend=backend, check=False)
        attention_kl(teacher, student, weights, backend=backend, check=False)
    assert reads.count == 0


def test_the_loss_reads_numbers_at_its_first_call_alone():
    loss, (teacher, student) = SHD(backend="streamed"), captures()
    counts = []
    for _ in range(3):
        with Reads() as reads:
            loss(teacher, student).backward()
        counts.append(reads.count)
    of_out = 0 if DEVICE == "cuda" else 1  # a CPU, where nothing waits, compares a sample of W^O
    assert counts[0] > of_out and counts[1:] == [of_out, of_out]


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU: torch itself says what waits for it")
def test_a_gpu_is_never_waited_for():
    """In the third call: the first looks at numbers, the second measures backends and copies indices."""
    window = 4
    layers = []
    for heads in (4, 2):
        table = torch.randn((2 * window - 1) ** 2 + 3, heads, device=DEVICE, requires_grad=True)
        capture = on_device(random_capture(h=heads, n=window**2, m=window**2, dtype=torch.float32, bias=False))
        layers.append(dataclasses.replace(capture, bias=RelativeBias(table, window)))
    layers[1].query.requires_grad_()
    loss = SHD()
    for call in range(3):
        torch.cuda.set_sync_debug_mode("error" if call == 2 else "default")
        try:
            total = loss({"layer": layers[0]}, {"layer": layers[1]})
            out = attend(layers[1].query, layers[1].key, layers[1].value, 0.5, layers[1].bias)
            (total + out.sum()).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("backend", ["streamed", "fused", "triton"])
@pytest.mark.parametrize("method", ["pairwise", "joint", "per_query", "constant", "hard"])
@pytest.mark.parametrize("part", ["query", "key"])
@pytest.mark.parametrize("heads", [2, 1])
def test_nan_reaches_the_loss(backend, method, part, heads):
    """Of one number of the teacher's, in every head, since hard takes one of them."""
    teacher = on_device(random_capture(h=4, dtype=torch.float32))
    student = on_device(random_capture(h=heads, d=3, seed=5, dtype=torch.float32, bias=False))
    getattr(teacher, part)[1, :, 2, 0] = torch.nan
    weights = squeeze(teacher, heads, method=method, backend=backend, check=False)
    value = attention_kl(teacher, student, weights, backend=backend, check=False)
    assert value.isnan().tolist() == [False, True]


@pytest.mark.parametrize("method", ["pairwise", "joint", "per_query"])
def test_nan_in_values_reaches_the_weights(method):
    teacher = random_capture(h=4, dtype=torch.float32)
    teacher.value[1, :, 2, 0] = torch.nan
    weights = squeeze(teacher, 2, method=method, check=False)
    assert weights.weight.isnan().flatten(1).all(1).tolist() == [False, True]
    assert weights.residual.isnan().all(1).tolist() == [False, True]
