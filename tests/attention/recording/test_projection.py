"""W^O as it was in the forward: it outlives the model, is never another layer's, and never one that changed since."""

import copy
import functools
import gc

import accelerate
import pytest
import torch
from clients.drawn import drawn, recorded
from clients.layers import E, Layer, X, merged, split
from clients.projections import ByHead, ByHeadCast, Matmul
from torch import nn
from torch.nn import functional as F

from dit_shd import SHD, capture
from dit_shd.core.errors import UserError


@pytest.mark.parametrize("layer", [Layer, ByHead, ByHeadCast, lambda: Layer(project=lambda: Matmul(E, E))])
def test_captures_outlive_their_model(layer):
    """What reads W^O when it is wanted keeps the module that holds it, and nothing else is kept."""
    model = drawn(nn.Sequential(layer(), layer()))
    recorded(model)  # now it is known where W^O is
    want = [c.out.clone() for c in recorded(model).values()]
    captures = recorded(model)
    del model
    gc.collect()
    assert [c.why_no_out for c in captures.values()] == ["", ""]
    for found, expected in zip(captures.values(), want):
        torch.testing.assert_close(found.out, expected)


def test_a_model_is_not_kept_by_what_is_known_of_it():
    from weakref import ref

    model = drawn(nn.Sequential(Layer(), ByHead()))
    recorded(model)
    gone = [ref(module) for module in model.modules()]
    del model
    gc.collect()
    assert all(module() is None for module in gone)


@pytest.mark.parametrize("layer", [Layer, ByHead])
@pytest.mark.parametrize("change", [lambda w: w.data.copy_(w.data * 1.5), lambda w: setattr(w, "data", w.data + 1)])
def test_weights_that_changed_since_the_forward_are_not_read(layer, change):
    """An EMA that is copied into the model and out again: its W^O is not the student's."""
    model = drawn(nn.Sequential(layer()))
    for _ in range(2):
        captures = recorded(model)
        with torch.no_grad():
            change(model[0].out if layer is ByHead else model[0].proj.weight)
        (found,) = captures.values()
        assert found.out is None and "have changed since the forward" in found.why_no_out
    student = drawn(nn.Sequential(Layer()))
    with capture(student) as s:
        student(*X()["args"])
    half = {"0": next(iter(s.values())).__class__(*(x[:, ::2] for x in (s["0"].query, s["0"].key, s["0"].value)), 1.0)}
    with pytest.raises(UserError, match="take the loss before they do"):
        SHD()(captures, half)


class Tuned(nn.Linear):
    """A projection whose caller says how much of its adapter counts."""

    def __init__(self) -> None:
        super().__init__(E, E)
        self.down, self.up = nn.Linear(E, 2, bias=False), nn.Linear(2, E, bias=False)

    def forward(self, input, scale=0.0):
        return super().forward(input) + scale * self.up(self.down(input))


class Scalable(Layer):
    def __init__(self) -> None:
        super().__init__(project=Tuned)

    def forward(self, x, scale):
        return self.proj(merged(F.scaled_dot_product_attention(*split(self.qkv(x)))), scale)


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_a_projection_is_asked_with_what_it_was_given_in_this_forward(kind):
    model, (x,) = drawn(Scalable()), X()["args"]
    kept = []
    for scale in map(kind, (0.0, 1.0, 5.0)):
        with torch.no_grad(), capture(model) as captures:
            model(x, scale)
        want = model.proj.weight + scale * model.proj.up.weight @ model.proj.down.weight
        kept.append((*captures.values(), want.t()))
    for found, want in kept:
        torch.testing.assert_close(found.out.flatten(0, 1), want, rtol=1e-4, atol=1e-5)
    with capture(model) as captures:
        model(x, 1.0)
    assert "in training" in next(iter(captures.values())).why_no_out


def test_what_a_projection_was_given_is_not_kept():
    from weakref import ref

    model, scale = drawn(Scalable()), torch.ones(1)
    with torch.no_grad(), capture(model):
        model(X()["args"][0], scale)
    gone = ref(scale)
    del scale
    gc.collect()
    assert gone() is None


def test_the_students_weights_are_not_sampled_and_may_change():
    model = drawn(nn.Sequential(Layer()))
    with capture(model) as captures:
        model(*X()["args"])
    with torch.no_grad():
        model[0].proj.weight.mul_(2)
    assert torch.equal(captures["0"].out.flatten(0, 1), model[0].proj.weight.t())


@pytest.mark.parametrize("layer", [Layer, ByHead])
def test_weights_that_are_there_for_one_forward_alone(layer):
    """An average by torch.func.functional_call: its own W^O, not that of the model it was called through."""
    model = drawn(nn.Sequential(layer()))
    name = "0.out" if layer is ByHead else "0.proj.weight"
    average = {name: parameter.detach() * 1.1 for name, parameter in model.named_parameters()}
    for _ in range(2):  # in a first forward, and where W^O is known
        with torch.no_grad(), capture(model) as captures:
            torch.func.functional_call(model, average, X()["args"])
        found = captures["0"].out.flatten(0, 1)
        torch.testing.assert_close(found, average[name].flatten(0, 1) if layer is ByHead else average[name].t())
        (plain,) = recorded(model).values()
        torch.testing.assert_close(plain.out.flatten(0, 1) * 1.1, found)


def test_weights_whose_memory_is_used_again_are_those_of_their_layer():
    """As of weights that are unpacked, layer by layer, into one workspace."""

    class Unpacking(Layer):
        def forward(self, x):
            workspace.copy_(self.proj.weight)
            return F.linear(merged(F.scaled_dot_product_attention(*split(self.qkv(x)))), workspace)

    workspace, model = torch.empty(E, E), drawn(nn.Sequential(Unpacking(), Unpacking()))
    for _ in range(2):
        for layer, found in zip(model, recorded(model).values()):
            torch.testing.assert_close(found.out.flatten(0, 1), layer.proj.weight.t())


def adapted(model: nn.Module) -> nn.Module:
    peft = pytest.importorskip("peft")
    return peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["proj"], init_lora_weights=False), model)


def as_it_is(model: nn.Module) -> nn.Module:
    return model


def quantised(model: nn.Module) -> nn.Module:
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


def normed(model: nn.Module) -> nn.Module:
    for block in model:
        nn.utils.parametrizations.weight_norm(block.proj)
    return model


def response(model: nn.Module) -> torch.Tensor:
    """W^O [e,e] of the first layer, as its projection answers, in float64."""
    proj = model[0].proj
    like = proj.base_layer.weight if hasattr(proj, "base_layer") else proj.weight
    with torch.no_grad():
        unit = torch.eye(E, dtype=like.dtype)
        return proj(unit).double() - proj(torch.zeros_like(unit)).double()


@pytest.mark.parametrize("kind", [adapted, as_it_is])
def test_a_model_may_be_cast_or_quantised_after_it_was_recorded(kind):
    """What was known of adapters was of the types and places they had: W^O could not be had from then on."""
    model = kind(drawn(nn.Sequential(Layer())))
    assert recorded(model)["0"].out is not None
    change = model.double if kind is adapted else lambda: quantised(model)
    change()
    for _ in range(2):
        with torch.no_grad(), capture(model) as captures:
            model(X()["args"][0].to(next(model.parameters()).dtype))
        assert captures["0"].out is not None, captures["0"].why_no_out
        torch.testing.assert_close(captures["0"].out.flatten(0, 1).double(), response(model), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [quantised, normed])
def test_weights_that_a_module_makes_are_had_of_a_compiled_model(kind):
    """Its products are not watched, and no program is asked for more than the eager forward that comes first."""
    torch._dynamo.reset()
    model = kind(drawn(nn.Sequential(Layer(), Layer())))
    compiled = torch.compile(model, backend="eager")
    for _ in range(3):
        with torch.no_grad(), capture(compiled) as captures:
            compiled(*X()["args"])
        assert captures["0"].out is not None, captures["0"].why_no_out
        torch.testing.assert_close(captures["0"].out.flatten(0, 1).double(), response(model), rtol=0, atol=1e-6)


@pytest.mark.parametrize("whole", [True, False])
def test_weights_that_are_at_hand_while_a_compiled_layer_runs(whole):
    """Of an offloaded teacher: its projection leaves the program. The second forward had been refused."""
    torch._dynamo.reset()
    model = drawn(nn.Sequential(Layer(), Layer()))
    want = [layer.proj.weight.detach().t().clone() for layer in model]
    compiled = accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    if whole:
        compiled = torch.compile(model, backend="eager")
    else:
        for layer in model:
            layer.compile(backend="eager")
    for _ in range(3):
        with torch.no_grad(), capture(compiled) as captures:
            compiled(*X()["args"])
        assert all(each.out is not None for each in captures.values()), captures["0"].why_no_out
        assert [torch.equal(each.out.flatten(0, 1), w) for each, w in zip(captures.values(), want)] == [True, True]


class Makes(Layer):
    """Its W^O is a tensor that it makes, as a slice or a cast of a parameter."""

    def forward(self, x):
        return F.linear(merged(F.scaled_dot_product_attention(*split(self.qkv(x)))), self.proj.weight * 1.0)


@pytest.mark.parametrize("teacher", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_only_a_teacher_leaves_its_program_for_weights_that_it_makes(teacher, wrapped):
    """Those of a student are not read. A forward that is wrapped is recorded in another place."""
    torch._dynamo.reset()
    model = drawn(nn.Sequential(Makes(), Makes()))
    if wrapped:
        for layer in model:
            layer.forward = functools.partial(layer.forward)
    recorded(model)  # what is known of it does not leave the program
    compiled = torch.compile(model, backend="eager", fullgraph=not teacher)
    for _ in range(2):
        with torch.set_grad_enabled(not teacher), capture(compiled) as captures:
            compiled(*X()["args"])
        assert list(captures) == ["0", "1"]
        for layer, each in zip(model, captures.values()):
            assert (each.out is not None) == teacher, each.why_no_out
            assert not teacher or torch.equal(each.out.flatten(0, 1), layer.proj.weight.t())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_bias_in_half_precision_does_not_hide_the_weights(dtype):
    """The product with unit rows was rounded beside a bias a hundred times as large: W^O was wrong by a third."""
    model = adapted(drawn(nn.Sequential(Layer()))).to(dtype)
    base = model[0].proj.base_layer
    with torch.no_grad():
        base.bias.fill_(30.0)
        with capture(model) as c:
            model(X()["args"][0].to(dtype))
    lora = model[0].proj
    up, down = lora.lora_B["default"].weight.double(), lora.lora_A["default"].weight.double()
    want = (base.weight.double() + lora.scaling["default"] * up @ down).T.detach()
    error = (c["0"].out.flatten(0, 1).double() - want).norm() / want.norm()
    assert error <= 2 * torch.finfo(dtype).eps


def test_a_copy_of_a_recorded_model_with_parametrised_attention_is_a_plain_one():
    """Such modules copy themselves, recorders and all: the copy's first forward was a traceback."""
    model = drawn(nn.Sequential(ByHead()))
    nn.utils.parametrizations.weight_norm(model[0], "out")
    recorded(model)
    with torch.no_grad(), capture(model) as captures:
        want = model(*X()["args"])
        copied = copy.deepcopy(model)
        torch.testing.assert_close(copied(*X()["args"]), want)
        assert captures["0"].out is not None
    assert type(copied[0]) is type(model[0])
    assert not any("_dit_shd" in key for module in copied.modules() for key in vars(module))
