"""One model as teacher and student, and captures that are not those of a teacher."""

import contextlib
import copy

import pytest
import small_families
import torch
from clients.layers import E, Layer, X
from clients.patterns import Doors
from torch import nn

from dit_shd import SHD, capture
from dit_shd.core.errors import UserError


class Adapter(nn.Linear):
    """A Linear with a low-rank one beside it that can be off, as in peft."""

    on = True

    def __init__(self, a: int, b: int):
        super().__init__(a, b)
        self.down, self.up = nn.Linear(a, 2, bias=False), nn.Linear(2, b, bias=False)

    def forward(self, input):
        return super().forward(input) + (self.up(self.down(input)) if self.on else 0)


class Tuned(Doors):
    """Adapters at queries, keys, values and W^O."""

    def __init__(self) -> None:
        super().__init__()
        for block in self.blocks:
            block.qkv, block.proj = Adapter(E, 3 * E), Adapter(E, E)

    @contextlib.contextmanager
    def disabled(self):
        Adapter.on = False
        try:
            yield
        finally:
            Adapter.on = True


def plain(model):
    """The model without adapters, by itself."""
    alone = Doors().eval()
    for block, tuned in zip(alone.blocks, model.blocks):
        block.qkv.load_state_dict(tuned.qkv.state_dict(), strict=False)
        block.proj.load_state_dict(tuned.proj.state_dict(), strict=False)
    return alone


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Tuned().eval()


(INPUT,) = X()["args"]


def base(model):
    with torch.no_grad(), model.disabled():
        model(INPUT)


def apart(model):
    """The captures of two models."""
    teacher = plain(model)
    with torch.no_grad(), capture(teacher) as t:
        teacher(INPUT)
    with capture(model) as s:
        model(INPUT)
    return t, s


def one_after_the_other(model):
    with capture(model) as t:
        base(model)
    with capture(model) as s:
        model(INPUT)
    yield t, s


def in_one_line(model):
    with capture(model) as t, capture(model) as s:
        base(model)
        model(INPUT)
    yield t, s


def inside_each_other(model):
    with capture(model) as t:
        base(model)
        with capture(model) as s:
            model(INPUT)
    yield t, s


def step_after_step(model):
    with capture(model) as t, capture(model) as s:
        for _ in range(3):
            base(model)
            model(INPUT)
            yield t, s


def with_an_evaluation_between(model):
    with capture(model) as t, capture(model) as s:
        base(model)
        model(INPUT)
        with torch.no_grad():
            model(INPUT)  # now both have this one
        base(model)
        model(INPUT)
        yield t, s


@pytest.mark.parametrize(
    "how", [one_after_the_other, in_one_line, inside_each_other, step_after_step, with_an_evaluation_between]
)
def test_a_model_without_its_adapters_teaches_itself(how, model):
    """As a model of its own would: maps, W^O and the loss; the gradient is the adapters'."""
    want = {}
    for role, captures in zip("ts", apart(model)):
        want[role] = {name: (c.map().detach(), c.out.detach()) for name, c in captures.items()}
    for _ in range(2):  # the first forward, and later ones
        for t, s in how(model):
            for role, captures in (("t", t), ("s", s)):
                for name, c in captures.items():
                    torch.testing.assert_close((c.map().detach(), c.out), want[role][name])
            loss = SHD()(t, s)
            assert loss > 0
            model.zero_grad()
            loss.backward()
            assert model.blocks[0].qkv.up.weight.grad.abs().sum() > 0


def test_pefts_adapters_teach_the_model_that_they_adapt():
    """LoRA on W^O too, which is read with the adapter of its own forward."""
    peft = pytest.importorskip("peft")
    how = peft.LoraConfig(r=2, target_modules=["to_q", "to_out.0"], init_lora_weights=False)
    model = small_families.diffusers_dit()
    alone = copy.deepcopy(model)
    tuned = peft.get_peft_model(model, how).eval()
    inputs = torch.randn(2, 1, 8, 8), torch.tensor([1, 9]), torch.tensor([0, 2])
    with torch.no_grad(), capture(alone) as want:
        alone(*inputs)
    for _ in range(2):
        with capture(tuned) as t, capture(tuned) as s:
            with torch.no_grad(), tuned.disable_adapter():
                tuned(*inputs)
            tuned(*inputs)
        for teacher, student, expected in zip(t.values(), s.values(), want.values(), strict=True):
            torch.testing.assert_close((teacher.map(), teacher.out), (expected.map(), expected.out))
            assert not torch.allclose(student.out, expected.out, atol=1e-3)
        assert SHD()(t, s).isfinite()
    with capture(tuned) as captures:
        tuned.enable_gradient_checkpointing()  # of the model inside, handed on
        tuned(*inputs)
        assert len(captures) == len(want)


def test_a_wrapper_has_methods_of_its_own():
    """DDP's no_sync, an average's update: the class inside does not have them, which was an AttributeError."""
    model = Tuned().eval()
    average = torch.optim.swa_utils.AveragedModel(model)
    inputs = X()["args"]
    with torch.no_grad(), capture(model) as want:
        model(*inputs)
    with torch.no_grad(), capture(average) as captures:
        for _ in range(2):
            average(*inputs)
            average.update_parameters(model)
            for name, each in captures.items():
                torch.testing.assert_close(each.map(), want[name].map())


@pytest.mark.parametrize("family", ["dit", "mdt"])
def test_our_own_models_teach_themselves(family):
    model = small_families.build(family)
    x, y = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    rest = torch.tensor([1, 9]), torch.tensor([0, 2])

    def queries(*inputs):
        with torch.no_grad(), capture(model) as captures:
            model(*inputs)
        return [c.query for c in captures.values()]

    with capture(model) as t, capture(model) as s:
        with torch.no_grad():
            model(x, *rest)
        model(y, *rest)
    for captures, image in ((t, x), (s, y)):
        torch.testing.assert_close([c.query.detach() for c in captures.values()], queries(image, *rest))
    assert SHD()(t, s) > 0


@pytest.mark.parametrize("wrapped", ["inside", "outside"])
def test_of_a_wrapped_model_too(wrapped, model):
    """The model and what DDP or peft make of it are one."""
    outer = nn.DataParallel(model, device_ids=[])
    first, second = (outer, model) if wrapped == "outside" else (model, outer)
    with capture(first) as t, capture(second) as s:
        base(model)
        model(INPUT)
    assert SHD()(t, s) > 0


def test_an_average_of_the_weights_teaches(model):
    """A copy of the model; made inside of a capture, too."""
    with capture(model) as s:
        model(INPUT)
        average = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in average.parameters():
                parameter.mul_(0.9)
            with capture(average) as t:
                average(INPUT)
    assert SHD()(t, s) > 0


def same_forward(model):
    with capture(model) as t, capture(model) as s:
        model(INPUT)
    return t, s


def teacher_with_a_graph(model):
    with capture(model) as t, capture(model) as s:
        with model.disabled():
            model(INPUT)
        model(INPUT)
    return t, s


def both_without(model):
    with torch.no_grad(), capture(model) as t, capture(model) as s:
        with model.disabled():
            model(INPUT)
        model(INPUT)
    return t, s


def student_first(model):
    with capture(model) as t, capture(model) as s:
        model(INPUT)
        base(model)
    return t, s


@pytest.mark.parametrize("how", [same_forward, teacher_with_a_graph, both_without, student_first])
def test_captures_of_one_forward_are_refused(how, model):
    for _ in range(2):
        t, s = how(model)
        with pytest.raises(UserError, match=r"one and the same forward.*first and under torch.no_grad"):
            SHD()(t, s)


def test_exchanged_captures_are_refused(model):
    with capture(model) as student, capture(model) as teacher:
        base(model)
        model(INPUT)
    with pytest.raises(UserError, match="as if they were exchanged"):
        SHD()(teacher, student)
    with torch.no_grad():
        assert SHD()(teacher, student) > 0  # nothing is trained: which is which is not known


def test_captures_of_a_sink_say_where_they_are():
    model, taken = Doors().eval(), {}
    with capture(model) as s:
        model(INPUT)
    with torch.no_grad(), capture(model, sink=taken.__setitem__) as t:
        model(INPUT)
    with pytest.raises(UserError, match="handed to the sink="):
        SHD()(t, s)
    assert SHD()(taken, s).isfinite()


def test_a_part_may_be_captured_by_itself():
    model = nn.Sequential(Layer(), Layer()).eval()
    with torch.no_grad(), capture(model[1]) as captures:
        model(INPUT)
    (found,) = captures.values()
    assert torch.equal(found.out.flatten(0, 1), model[1].proj.weight.t())


@pytest.mark.parametrize("first", [0, 1, 2])
def test_captures_of_our_models_are_closed_in_any_order(first):
    """One that began later had recorded nothing once an earlier one was closed."""
    model, x = small_families.build("dit"), (torch.randn(2, 1, 8, 8), torch.tensor([1, 9]), torch.tensor([0, 2]))
    contexts = [capture(model) for _ in range(3)]
    captures = [context.__enter__() for context in contexts]
    for closed in (first, *({0, 1, 2} - {first})):
        contexts[closed].__exit__(None, None, None)
        captures[closed] = None
        with torch.no_grad():
            model(*x)
        for each in captures:
            assert each is None or len(each) == len(list(model.blocks))
    assert all(block.attn.recorder is None for block in model.blocks)
