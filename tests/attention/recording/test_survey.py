"""Models that are no ordinary modules of dense tensors: exported, scripted, traced, nested, offloaded, sharded."""

import pytest
import torch
import torch.nn.functional as F
from clients.layers import E, Layer, X
from clients.patterns import Doors
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from dit_shd import SHD, capture
from dit_shd.attention.recording.arrivals import Arrivals
from dit_shd.core.errors import UserError

(INPUT,) = X()["args"]


def recorded(model, *inputs):
    with torch.no_grad(), capture(model) as captures:
        model(*inputs)
    return captures


def test_an_exported_model_is_recorded_as_the_one_it_was_made_of():
    model = Doors().eval()
    exported = torch.export.export(model, (INPUT,)).module()
    want = recorded(model, INPUT)
    for _ in range(2):
        found = recorded(exported, INPUT)
        assert len(found) == 2
        for one, other in zip(found.values(), want.values()):
            torch.testing.assert_close((one.map(), one.out), (other.map(), other.out))
    student = Doors().eval()
    with capture(student) as s:
        student(INPUT)
    assert SHD()(found, s) > 0


def test_what_looking_calls_is_not_taken_for_the_models_doing(monkeypatch):
    """It was, in the first forward: looked at, remembered and searched by all that followed, for seconds."""
    model, plain, seen = nn.Sequential(*(Layer() for _ in range(4))).eval(), [], []

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            plain.append(func)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Functions():
        model(INPUT)
    follow = Arrivals.follow
    monkeypatch.setattr(Arrivals, "follow", lambda self, *each: (seen.append(each[0]), follow(self, *each))[1])
    assert len(recorded(model, INPUT)) == 4
    assert seen == plain


@pytest.mark.parametrize("compile", [torch.jit.script, lambda model: torch.jit.trace(model, INPUT)])
def test_programs_of_torch_jit_are_refused_in_a_line(compile):
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(E, 3 * E)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(x).chunk(3, dim=2)
            return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])

    program = compile(Plain())
    with pytest.raises(UserError, match=r"program of torch\.jit, whose calls cannot be seen; give the model"):
        recorded(program, INPUT)
    mixed = nn.Sequential(Layer(), program)  # a part of it: the rest is recorded
    assert list(recorded(mixed, INPUT)) == ["0"]


class Jagged(Layer):
    def forward(self, x):
        q, k, v = (y.contiguous().unflatten(-1, (4, 8)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.filterwarnings("ignore")
@sdpa_kernel(SDPBackend.MATH)
def test_nested_tensors_are_refused_in_a_line():
    model = nn.Sequential(Jagged()).eval()
    x = torch.nested.nested_tensor([torch.randn(n, E) for n in (3, 5)], layout=torch.jagged)
    with torch.no_grad():
        model(x)  # it runs by itself
    with pytest.raises(UserError, match=r"0: nested \(jagged\) tensors cannot be recorded; pad the sequences"):
        recorded(model, x)
    both = nn.Sequential(Jagged(), Layer()).eval()

    class Pads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = both

        def forward(self, x):
            return self.both[1](torch.nested.to_padded_tensor(self.both[0](x), 0.0))

    captures = recorded(Pads().eval(), x)
    assert list(captures) == ["both.1"]
    assert "nested" in captures.report().lines[0].left_out


def test_a_failure_while_looking_is_a_reason_and_not_an_error(monkeypatch):
    """Nothing in the watch stops the model."""
    from dit_shd.attention.recording.arrivals import Arrivals

    def broken(*_, **__):
        raise ValueError("of ours")

    monkeypatch.setattr(Arrivals, "_look", broken)
    model = Doors().eval()
    with torch.no_grad():
        plain = model(INPUT)
        with capture(model) as captures:
            assert torch.equal(model(INPUT), plain)
    assert captures["blocks.0"].out is None
    assert "ValueError: of ours" in captures["blocks.0"].why_no_out


@pytest.mark.two_processes("sharded_capture")
def test_models_in_slices_give_the_maps_and_the_weights_of_whole_ones(by_two):
    """FSDP1 and FSDP2 give all of it in each process; tensor parallel gives each process its own heads of both."""
    for rank in range(2):
        found = torch.load(by_two / f"found_{rank}.pt", weights_only=True)
        assert len({name for name, *_ in found}) == 4 and len(found) == 14
        for (name, *_), case in found.items():
            assert case["same output"] and case["layers"] == ["0", "1", "2"], name
            assert case["why"] == ["", "", ""], (name, case["why"])
            mine = slice(2 * rank, 2 * rank + 2) if name == "tensor parallel" else slice(None)
            for (maps, out), (all_maps, all_out) in zip(case["found"], case["want"]):
                torch.testing.assert_close((maps, out), (all_maps[:, mine], all_out[mine]), rtol=1e-5, atol=1e-6)
            if name != "tensor parallel":
                assert case["loss"][0] == pytest.approx(case["loss"][1], rel=1e-5)


class Joins(nn.Module):
    """Words stand before the image's tokens where they are given; both have a projection of their own."""

    def __init__(self):
        super().__init__()
        self.qkv, self.to_out, self.to_add_out = nn.Linear(E, 3 * E), nn.Linear(E, E), nn.Linear(E, E)

    def forward(self, x, words=None):
        m = 0 if words is None else words.shape[1]
        both = x if words is None else torch.cat([words, x], dim=1)
        q, k, v = (y.unflatten(-1, (4, -1)).transpose(1, 2) for y in self.qkv(both).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.to_out(mixed[:, m:]), self.to_add_out(mixed[:, :m])


@pytest.mark.parametrize("by_name", [False, True])
def test_an_input_may_be_given_later_by_position_or_by_name(by_name):
    """What was seen without it does not hold with it: other layers run, and rows have other projections."""
    model, x, words = Joins(), torch.randn(2, 6, E), torch.randn(2, 3, E)
    with torch.no_grad(), capture(model) as captures:
        model(x)
        assert [c.shape for c in captures.values()] == [(2, 4, 6, 6)]
        model(x, words=words) if by_name else model(x, words)
        assert [c.shape for c in captures.values()] == [(2, 4, 6, 9), (2, 4, 3, 9)]
        for one, out in zip(captures.values(), (model.to_out, model.to_add_out), strict=True):
            torch.testing.assert_close(one.out.flatten(0, 1), out.weight.detach().t())
        model(x)
        assert [c.shape for c in captures.values()] == [(2, 4, 6, 6)]
