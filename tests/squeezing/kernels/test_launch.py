"""The kernels' operators: opaque to torch.compile, inside their tensors, and compiled for GPUs that are not here."""

import dataclasses
import os
import signal
import subprocess
import sys

import pytest
import torch
from guarded_memory import Guarded, in_a_process_of_its_own
from packaging.version import Version
from random_captures import random_capture
from triton.runtime.interpreter import InterpretedFunction

from dit_shd.attention.bias import DenseBias
from dit_shd.attention.capture import Capture
from dit_shd.attention.kernels.captures import attention, side_of
from dit_shd.attention.relative_bias import RelativeBias
from dit_shd.squeezing.backends.triton import operators
from dit_shd.squeezing.divergence import attention_kl
from dit_shd.squeezing.squeeze import squeeze

HAS_GPU = torch.cuda.is_available()
torch_alone = pytest.mark.skipif(HAS_GPU, reason="of torch.compile, not of a device: the tests on a CPU run it")
walled = pytest.mark.skipif(HAS_GPU, reason="pages are protected in a CPU's memory, in the interpreter")


@torch_alone
@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.11"), reason="older ones cannot trace dataclasses and slices"
)
def test_compiled_code_sees_one_operator_and_no_graph_break():
    teacher, student = random_capture(h=4, dtype=torch.float32), random_capture(h=2, d=3, seed=5, dtype=torch.float32)

    def loss(t_query, query, key):
        t = dataclasses.replace(teacher, query=t_query)
        s = dataclasses.replace(student, query=query, key=key)
        weights = squeeze(t, 2, backend="triton", check=False)
        return attention_kl(t, s, weights, backend="triton", check=False).sum()

    torch._dynamo.reset()
    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        query, key = student.query.clone().requires_grad_(), student.key.clone().requires_grad_()
        value = function(teacher.query, query, key)
        results.append([value.detach(), *torch.autograd.grad(value, [query, key])])
    torch.testing.assert_close(*results)


@pytest.mark.skipif(HAS_GPU, reason="the interpreter's launches are watched")
def test_every_kernel_is_launched_on_the_device_of_its_tensors(monkeypatch):
    """Triton launches on the current GPU, wherever the tensors are."""
    if not hasattr(InterpretedFunction, "run"):
        pytest.skip("this Triton's interpreter launches otherwise")
    entered, launches = [], []

    class Watched(torch.cuda.device_of):
        def __init__(self, x):
            super().__init__(x)
            self.x = x

        def __enter__(self):
            entered.append(self.x.device)
            super().__enter__()

        def __exit__(self, *error):
            entered.pop()
            return super().__exit__(*error)

    def watched(*given, run=InterpretedFunction.run, **options):
        launches.append(list(entered))
        return run(*given, **options)

    monkeypatch.setattr(torch.cuda, "device_of", Watched)
    monkeypatch.setattr(InterpretedFunction, "run", watched)
    r = torch.Generator().manual_seed(0)
    sides = [Capture(*torch.randn(3, 1, h, 16, 4, generator=r), 0.5) for h in (2, 1)]
    query, table = sides[1].query.requires_grad_(), torch.randn(52, 1, generator=r, requires_grad=True)
    student = dataclasses.replace(sides[1], bias=RelativeBias(table, 4))
    weights = squeeze(sides[0], 1, method="constant")
    for measure in ("kl", "mse"):
        attention_kl(sides[0], student, weights, measure=measure, backend="triton")
    attention(query, student.key, student.value, 0.5, student.bias).sum().backward()
    assert len(launches) == 2 * (2 + 3) + 4
    assert all(devices == [torch.device("cpu")] for devices in launches)


def inside_their_tensors(before):
    """Every kernel with all its tensors at walls; whoever reads or writes beyond one is killed."""
    guarded = Guarded(before)
    r = torch.Generator().manual_seed(0)

    def draw(*shape):
        return guarded.moved(torch.randn(*shape, generator=r))

    def capture(heads, d, n, bias, causal):
        made = DenseBias(draw(1, heads, n, n)) if bias == "dense" else None
        made = RelativeBias(draw(52, heads), 4) if bias == "grid" else made
        out = draw(heads, d, 9)
        return Capture(draw(1, heads, n, d), draw(1, heads, n, d), draw(1, heads, n, d), 0.5, made, causal, out)

    for bias, causal, n, measure, collect, shape in (
        ("none", True, 37, "kl", "none", [0]),
        ("dense", False, 5, "mse", "dense", [1, 1, 5, 5]),
        ("grid", False, 16, "kl", "lines", [1, 1, 4, 7, 4]),
    ):
        sides = [side_of(capture(heads, d, n, bias, causal), 1.0) for heads, d in ((3, 5), (1, 7))]
        flat = [[s["tensors"], s["bias"], s["causal"], [s["factor"], s["bias_factor"]], s["offset"]] for s in sides]
        weight, *kept, row_weight = draw(1, 3, 1), draw(1, 1, n), draw(1, 1, n), draw(1, n)
        with guarded:
            top, inverse = draw(1, 3, n), draw(1, 3, n)
            operators.divergence._init_fn(
                *flat[0], *flat[1], weight, top, inverse, *kept, row_weight, [0, 0, 0], measure, True, collect, shape
            )


@walled
@pytest.mark.parametrize("before", [False, True])
def test_nothing_is_read_or_written_outside_of_the_tensors(before):
    done = in_a_process_of_its_own(__file__, f"inside_their_tensors({before})")
    assert done.returncode == 0, done.stderr[-2000:]


@walled
@pytest.mark.parametrize(("before", "index"), [(True, -1), (False, 1)])
def test_the_wall_is_felt(before, index):
    """A read of one number beyond a guarded tensor kills."""
    read = f"ctypes.c_float.from_address(Guarded({before}).moved(torch.ones(1)).data_ptr() + 4 * {index}).value"
    assert in_a_process_of_its_own(__file__, f"guarded = Guarded({before}); {read}").returncode == -signal.SIGSEGV


def test_blocks_have_room_for_the_wider_of_two_precisions(monkeypatch):
    """A float32 teacher's blocks are twice as large as those of its bfloat16 student."""
    asked = []
    for name in ("of_rows", "of_keys"):
        blocks = getattr(operators, name)
        monkeypatch.setattr(
            operators, name, lambda *given, _blocks=blocks: (asked.append(given[2]), _blocks(*given))[1]
        )
    r = torch.Generator().manual_seed(0)
    device = "cuda" if HAS_GPU else "cpu"
    teacher, student = (Capture(*torch.randn(3, 1, h, 16, 16, generator=r).to(device), 0.25) for h in (2, 1))
    query, key, value = (x.bfloat16() for x in (student.query, student.key, student.value))
    narrow = dataclasses.replace(student, query=query.requires_grad_(), key=key, value=value)
    rounded = dataclasses.replace(student, query=query.float(), key=key.float())
    weights = squeeze(teacher, 1, method="constant")
    found = attention_kl(teacher, narrow, weights, backend="triton")
    found.sum().backward()
    assert set(asked) == {torch.float32} and len(asked) == 2
    torch.testing.assert_close(found, attention_kl(teacher, rounded, weights, backend="streamed"), rtol=1e-2, atol=0)


def ahead_of_time(root, *options):
    """benchmarks/triton_kernels.py: compiles without a GPU, and ends with 1 if a kernel spills."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | {"PYTHONPATH": str(root)}
    command = [sys.executable, root / "benchmarks" / "triton_kernels.py", *options]
    return subprocess.run(command, env=env, capture_output=True, text=True)


@pytest.mark.skipif(HAS_GPU, reason="the other tests compile for the GPU that is here")
def test_kernels_compile_for_gpus_without_one(root):
    archs = ("80", "90", "120")
    done = ahead_of_time(root, "--arch", *archs, "--width", "64", "--dtype", "bf16", "--only", "kl 2:1 none")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| divergence_") == 2 * len(archs)  # by rows and by keys


@pytest.mark.slow
def test_every_kernel_fits_a_small_gpu(root):
    """Of an RTX 50 a program has 99 KiB of shared memory, as of an RTX 30, 40 and an A10."""
    done = ahead_of_time(root, "--arch", "120", "--width", "64", "128", "--dtype", "bf16", "fp32")
    rows = [row.split("|") for row in done.stdout.splitlines()[2:]]
    assert len(rows) > 300 and max(int(row[8]) for row in rows) <= 99 * 1024, done.stdout + done.stderr


@pytest.mark.slow
def test_one_kernel_spills_a_little_at_the_common_width_before_hopper(root):
    done = ahead_of_time(root, "--arch", "80", "120", "--width", "64", "--dtype", "bf16")
    spills = [int(row.split("|")[9]) for row in done.stdout.splitlines()[2:]]
    assert len(spills) > 160 and max(spills) <= 6 and sum(map(bool, spills)) <= 1, done.stdout + done.stderr


@pytest.mark.slow
def test_no_kernel_spills_at_the_common_width_on_hopper(root):
    done = ahead_of_time(root, "--arch", "90", "--width", "64", "72", "--dtype", "bf16", "fp32")
    assert done.returncode == 0, done.stdout + done.stderr
