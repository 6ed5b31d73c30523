"""Captures are those of the model's last forward, and never silently those of an earlier one."""

import copy

import pytest
import torch
from clients.layers import Layer, X, elsewhere, split
from clients.patterns import Doors
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from dit_shd import SHD, capture
from dit_shd.core.errors import UserError


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Doors().eval()


class Static(Layer):
    """Keys in memory of its own, which every forward writes to."""

    def forward(self, x):
        query, key, value = split(self.qkv(x))
        if not hasattr(self, "kept"):
            self.kept = torch.empty_like(key)
        return x + self.proj(elsewhere(query, self.kept.copy_(key), value))


def test_captures_that_were_kept_are_refused_once_their_memory_was_written_to():
    teacher, student, (x,) = nn.Sequential(Static()).eval(), nn.Sequential(Layer()), X()["args"]
    loss = SHD()
    with capture(teacher) as t, capture(student) as s:
        with torch.no_grad():
            teacher(x)
        student(x)
        first, kept, copied = loss(t, s).detach(), (dict(t), dict(s)), copy.deepcopy(dict(t))
        with torch.no_grad():
            teacher(2 * x)
        student(2 * x)
    assert loss(t, s) != first
    with pytest.raises(UserError, match="changed in place after it ran"):
        loss(*kept)
    with pytest.raises(UserError, match="changed in place after it ran"):
        SHD(plan="matched").calibrate(*kept)
    torch.testing.assert_close(loss(copied, kept[1]).detach(), first)


def test_one_capturing_serves_every_step_of_a_loop(model):
    capturing, x = capture(model), X()["args"][0]
    for step in (1, 2):
        with capturing as captures, torch.no_grad():
            model(step * x)
        assert captures["blocks.0"].query.shape[0] == len(x)
    assert type(model) is Doors and not any(name.startswith("_dit_shd") for name in vars(model))


def test_a_default_device_does_not_take_part(model):
    """As a script sets torch.set_default_device("cuda")."""
    x = X()["args"][0]
    with torch.device("meta"), torch.no_grad(), capture(model) as captures:
        model(x)
    assert captures["blocks.0"].out.device.type == "cpu"


@pytest.mark.parametrize("before", [False, True])
def test_a_model_that_ran_inside_of_a_compiled_function_has_no_captures_of_an_earlier_batch(model, before):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    x, step = X()["args"][0], torch.compile(lambda z: model(z) * 2, backend=counter, fullgraph=True)
    for _ in range(3):
        with torch.no_grad(), capture(model) as captures:
            if before:
                model(x)
                assert list(captures)
            step(x)
            for read in (len, list, dict, lambda c: c["blocks.0"], lambda c: c.report()):
                with pytest.raises(UserError, match="Doors ran inside of a function or model that"):
                    read(captures)
            model(2 * x)
            assert list(captures)
    assert counter.frame_count == (1 if before else 2)  # before anything is known its layers are of other classes
    torch._dynamo.reset()
