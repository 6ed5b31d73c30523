"""The capture on every transformer class of diffusers: it changes nothing, and what it takes is what the layer did."""

from functools import cache

import pytest
import torch
import zoo
from torch import nn

from dit_shd import SHD, attach_processors, capture
from dit_shd.core.errors import UserError

REFUSED = {
    "SanaTransformer2DModel": "linear attention",
    "SanaVideoTransformer3DModel": "linear attention",
    "Kandinsky6SRTransformer3DModel": "hard-wired",
    "AnyFlowFARTransformer3DModel": "flex",
    "T5FilmDecoder": "AttnProcessor2_0 instead",
}
"""Class -> a word of the reason."""
MAPS_ONLY = {
    "SanaWMTransformer3DModel",
    "LuminaNextDiT2DModel",
    "Krea2Transformer2DModel",
    "MotifVideoTransformer3DModel",
    "StableAudio3DiTModel",
    "RFD4ProteinaTransformer",
}
"""Some layer of these has no W^O: a gate or a sum comes before the projection."""
INSTALLED = [name for name in sorted(zoo.ENTRIES) if name in zoo.classes()]
SUPPORTED = [name for name in INSTALLED if name not in REFUSED]


@cache
def model_of(name: str) -> nn.Module:
    return zoo.build(name)


def state(model: nn.Module) -> dict:
    """Everything a capture could leave behind."""
    return {
        name: (type(m), list(vars(m)), getattr(m, "processor", None), len(m._forward_hooks), len(m._forward_pre_hooks))
        for name, m in model.named_modules()
    }


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_captured_layer_is_what_ran(name):
    """Nothing changes, softmax(scale q k^T + bias) v is the layer's result, and W^O is where its rows arrived."""
    model, inputs = model_of(name), zoo.draw(name)
    before = state(model)
    with torch.no_grad():
        plain = zoo.forward(model, inputs)
        arrived = arrivals(model, inputs)
        with capture(model) as captures:
            assert torch.equal(zoo.forward(model, inputs), plain)
            assert torch.equal(zoo.forward(model, inputs), plain)  # the first one also looked for W^O
        assert state(model) == before
        assert len(captures) > 0
        for layer, c in captures.items():
            value = c.value[:, c.key_heads(range(c.heads))]
            maps = c.map()
            mixed = (maps @ value.to(maps.dtype)).to(c.mixed.dtype)
            near = 1e-5 if c.value.dtype == torch.float32 else 0.05
            torch.testing.assert_close(mixed, c.mixed, rtol=near, atol=near, msg=layer)
            rows = c.mixed.transpose(1, 2).flatten(2)
            if c.out is None:
                assert name in MAPS_ONLY and "does not arrive unchanged" in c.why_no_out
                continue
            weight = c.out.flatten(0, 1)
            there = [given for given, w in arrived(rows.shape[-1]) if torch.equal(w, weight)]
            assert any(holds(given, sample) for given in there for sample in rows), layer  # others may be padded


@pytest.mark.parametrize("name", SUPPORTED)
def test_the_loss_reaches_the_students_queries_and_keys_only(name):
    teacher, student, inputs = zoo.build(name), model_of(name), zoo.draw(name)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.1)
    with capture(teacher) as t, capture(student) as s:
        zoo.forward(teacher, inputs)
        zoo.forward(student, inputs)
    tensors = [x for c in s.values() for x in (c.query, c.key)]
    loss = SHD(method="constant" if name in MAPS_ONLY else "pairwise")(t, s)
    assert loss > 0
    grads = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
    assert sum(g is not None and g.abs().max() > 0 for g in grads) >= len(tensors) // 2
    student.zero_grad()
    loss.backward()
    touched = [p.grad for p in student.parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert len(touched) >= 2
    assert all(p.grad is None for p in teacher.parameters())
    student.zero_grad()


@pytest.mark.parametrize("name", SUPPORTED)
def test_processors_do_the_same_and_leave_no_trace(name):
    model, inputs = model_of(name), zoo.draw(name)
    before = state(model)
    with torch.no_grad():
        plain = zoo.forward(model, inputs)
        try:
            attached = attach_processors(model)
        except UserError as error:
            assert "takes no attention processor" in str(error)
            assert state(model) == before
            return
        assert torch.equal(zoo.forward(model, inputs), plain)
        found = dict(attached.captures)
        attached.detach()
        assert state(model) == before
        with capture(model) as captures:
            zoo.forward(model, inputs)
    assert found.keys() == captures.keys()
    for layer, c in captures.items():
        assert torch.equal(found[layer].query, c.query)
        assert (found[layer].out is None) == (c.out is None)
        assert c.out is None or torch.equal(found[layer].out, c.out)


def test_what_is_refused_is_in_the_zoo():
    assert REFUSED.keys() <= zoo.ENTRIES.keys()


@pytest.mark.parametrize("name", [name for name in INSTALLED if name in REFUSED])
def test_what_cannot_be_recorded_is_refused_with_the_reason(name):
    model = model_of(name)
    before = state(model)
    with torch.no_grad(), pytest.raises(UserError, match=REFUSED[name]), capture(model):
        zoo.forward(model, zoo.draw(name))
    assert state(model) == before


def arrivals(model: nn.Module, inputs: dict):
    """What every Linear was given, by its own hook: (rows [..., k], weight [k, out]) for runs of k columns."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hooks = [
        m.register_forward_hook(lambda m, args, out: seen.append((args[0], m.weight)))
        for m in model.modules()
        if isinstance(m, nn.Linear)
    ]
    zoo.forward(model, inputs)
    for hook in hooks:
        hook.remove()

    def of_width(k: int):
        for given, weight in seen:
            if given.shape[-1] >= k:
                for first in {0, given.shape[-1] - k}:
                    yield given[..., first : first + k], weight.t()[first : first + k]

    return of_width


def holds(given: torch.Tensor, rows: torch.Tensor) -> bool:
    """Whether each of the rows [n,k] is among the given rows [..., k]."""
    given = given.reshape(-1, given.shape[-1])
    return bool((torch.cdist(rows.double(), given.double()).min(1).values < 1e-5).all())
