"""Layers of SHD replayed as CUDA graphs, against the same layers without; and when nothing is captured."""

import copy
import pickle
import warnings
import weakref
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dit_shd.attention.capture import Capture
from dit_shd.attention.relative_bias import RelativeBias
from dit_shd.core.cuda_graphs import CudaGraphs, _Graph, waits_for_gpu
from dit_shd.distillation.losses.shd import SHD

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def layers(seed, bias, leaves, out):
    """Captures of a step: new tensors, the layer's own table and W^O."""
    r = torch.Generator().manual_seed(seed)

    def side(heads, leaf, **more):
        q, k, v = (torch.randn(2, heads, 64, 16, generator=r).to(out) for _ in range(3))
        return Capture(q, k, v, 0.25, RelativeBias(leaf, 8) if bias else None, **more)

    teacher, student = side(4, leaves[0], out=out), side(2, leaves[1])
    student.query.requires_grad_(), student.key.requires_grad_()
    return {"attn": teacher}, {"attn": student}


@gpu
@pytest.mark.parametrize("backend", ["triton", "streamed"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("method", ["pairwise", "constant", "joint"])
def test_replayed_layers_are_those_that_are_issued_one_by_one(bias, method, backend):
    r = torch.Generator().manual_seed(9)
    leaves = [torch.randn(228, heads, generator=r).cuda() for heads in (4, 2)]
    leaves[1].requires_grad_()
    out = torch.randn(4, 16, 64, generator=r).cuda()
    replayed, plain = (SHD(layers="sections", method=method, backend=backend) for _ in range(2))
    for loss in (replayed, plain):
        loss._unchecked = False
    plain.graphs.works = False
    for step in range(5):
        found = []
        for loss in (replayed, plain):
            teacher, student = layers(step, bias, leaves, out)
            term = loss.divergence(teacher, student)
            wanted = [student["attn"].query, student["attn"].key, *([leaves[1]] if bias else [])]
            found.append([term.value, *torch.autograd.grad(term.value.sum(), wanted), *term.logs.values()])
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            leaves[1].add_(0.1)  # as an optimizer does: in its place
    assert replayed.graphs.works, "no capture failed"
    assert (method == "constant") or replayed.graphs._graphs, "and some were replayed"
    with torch.no_grad():
        out.add_(0.5)  # another W^O, as a teacher that learns has
    teacher, student = layers(7, bias, leaves, out)
    values = [loss.divergence(teacher, student).value for loss in (replayed, plain)]
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-6)


def storages(tensors):
    return {x.untyped_storage().data_ptr() for x in tensors}


UNREAD = (torch.ops.aten.lift_fresh.default, torch.ops.aten.detach.default)
"""What makes a constant, which a GPU keeps, and what reads no number."""


class Reads(TorchDispatchMode):
    """The tensors that a function reads and has not made itself."""

    def __init__(self):
        super().__init__()
        self.made, self.foreign = [], []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        places = storages(self.made)
        for x in tree_leaves((args, kwargs)):
            known = not isinstance(x, torch.Tensor) or not x.numel() or x.untyped_storage().data_ptr() in places
            if not known and operator not in UNREAD:
                self.foreign.append(x)
        result = operator(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        aliases = storages(given) - places if operator is not UNREAD[0] else set()
        new = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.made += [x for x in new if x.untyped_storage().data_ptr() not in aliases]  # kept: no memory comes twice
        return result


class Watched(CudaGraphs):
    """On a CPU: a key's second call runs as a capture does, and what it reads is noted."""

    def serve(self, tensors):
        return True

    def __call__(self, key, function, tensors):
        if key not in self._once:
            self._once.add(key)
            return function(*tensors)
        inputs = [x.detach().clone() for x in tensors]
        function(*inputs)
        with Reads() as reads:
            outputs = function(*inputs)
        self.read = storages(reads.foreign) - storages(inputs)
        return outputs


@pytest.mark.parametrize("backend", ["streamed", pytest.param("triton", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["pairwise", "constant", "joint"])
def test_what_a_graph_reads_stays_in_its_place(method, backend, monkeypatch):
    """But for its inputs: weights, and what is kept of W^O; nothing that another run has made, which will be gone."""
    leaves = [torch.randn(228, heads) for heads in (4, 2)]
    leaves[1].requires_grad_()
    out, loss = torch.randn(4, 16, 64), SHD(layers="sections", method=method, backend=backend)
    loss._unchecked, loss.graphs = False, Watched()
    monkeypatch.setattr(loss.squeezer, "buffers", lambda like: None)  # as on a GPU
    for step in range(2):
        loss.divergence(*layers(step, True, leaves, out))
    kept = [x for entry in loss.squeezer.projections._kept.values() for x in (entry.sample, entry.result)]
    assert loss.graphs.read <= storages([*leaves, out, *kept])
    assert storages(leaves) <= loss.graphs.read, "the tables themselves are among them"


def test_nothing_is_captured_on_a_cpu_and_graphs_stay_in_their_process():
    graphs = CudaGraphs(most=3, mib=1.0)
    assert not graphs.serve([torch.zeros(2)])
    for copied in (copy.deepcopy(graphs), pickle.loads(pickle.dumps(graphs))):
        assert (copied.most, copied.mib, copied._graphs) == (3, 1.0, {})
    calls = []
    (x,) = graphs("key", lambda x: calls.append(x) or [x + 1], [torch.ones(2)])
    assert calls and x.tolist() == [2.0, 2.0]


@gpu
def test_what_waits_for_the_gpu_is_not_captured_and_the_rest_is():
    graphs, here, x = CudaGraphs(), torch.cuda.current_stream(), torch.ones(2, device="cuda")
    for _ in range(3):
        (y,) = graphs("key", lambda x: [x * float(x.sum())], [x])  # waits for a number, which a capture cannot
        (z,) = graphs("another", lambda x: [x + 1], [x])
        assert y.tolist() == z.tolist() == [2.0, 2.0]
    assert graphs.works and list(graphs._graphs) == ["another"]
    assert torch.cuda.current_stream() == here and torch.cuda.get_sync_debug_mode() == 0
    torch.cuda.empty_cache()  # fails for ever after a capture that failed


@gpu
def test_groups_of_three_by_joint_weights_are_not_captured():
    """Their solver looks at which weights are negative."""
    r, loss = torch.Generator().manual_seed(0), SHD(method="joint", backend="streamed")
    loss._unchecked = False
    out = torch.randn(6, 16, 96, generator=r).cuda()
    for _ in range(3):
        q, k, v = (torch.randn(2, 6, 64, 16, generator=r).cuda() for _ in range(3))
        teacher, student = Capture(q, k, v, 0.25, out=out), Capture(q[:, :2], k[:, :2], v[:, :2], 0.25)
        loss.divergence({"attn": teacher}, {"attn": student})
    assert loss.graphs.works and loss.graphs._waiting and not loss.graphs._graphs


def test_waiting_for_a_gpu_is_heard_as_torch_says_it(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    assert waits_for_gpu(lambda: warnings.warn("called a synchronizing CUDA operation", stacklevel=1))
    with pytest.warns(match="something else"):
        assert not waits_for_gpu(lambda: warnings.warn("something else", stacklevel=1))
    with pytest.raises(ZeroDivisionError):
        waits_for_gpu(lambda: 1 / 0)
    assert modes == ["warn", 0] * 3


class Warmed(CudaGraphs):
    """On a CPU: everything but the capture itself."""

    captured = 0

    def _captured(self, key, function, tensors):
        self.captured += 1
        self._waiting.add(key)


def test_what_waits_is_asked_once():
    graphs = Warmed()
    for _ in range(4):
        graphs("key", lambda x: [x + 1], [torch.ones(2)])
    assert graphs.captured == 1


class Replayed:
    """On a CPU what a CUDA graph does: from the memory of its inputs to that of its outputs."""

    def __init__(self, inputs, outputs):
        self.inputs, self.outputs = inputs, outputs

    def replay(self):
        with torch.no_grad():
            torch._foreach_copy_(self.outputs, [2 * x for x in self.inputs])


class Something:
    """What a node of a step's graph holds."""

    held: ClassVar = weakref.WeakSet()

    def __init__(self):
        self.held.add(self)


class Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.something = Something()
        return x + 1


def test_a_replay_keeps_nothing_of_the_graphs_of_its_arguments():
    graphs, inputs, outputs = CudaGraphs(), [torch.zeros(2)], [torch.zeros(2)]
    graphs._graphs["key"] = _Graph(Replayed(inputs, outputs), inputs, outputs)
    for step in range(3):
        (y,) = graphs("key", None, [Step.apply(torch.full((2,), float(step), requires_grad=True))])
        assert y.tolist() == [2.0 * (step + 1)] * 2
    assert not Something.held
    assert not inputs[0].requires_grad


def test_what_a_loss_is_set_to_is_part_of_the_key():
    """A temperature that is changed between two steps is not replayed as it was."""
    loss, r = SHD(), torch.Generator().manual_seed(0)
    teacher, student = layers(0, False, [None, None], torch.randn(4, 16, 64, generator=r))
    found = [loss._key("attn", student["attn"], teacher["attn"], None)]
    for name, value in (("temperature", 2.0), ("measure", "mse"), ("backend", "triton")):
        setattr(loss, name, value)
        found.append(loss._key("attn", student["attn"], teacher["attn"], None))
    assert len(set(found)) == 4
