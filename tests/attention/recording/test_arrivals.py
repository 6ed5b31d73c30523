"""Which product is W^O: the rows of a result are looked for, and where that leaves a doubt nothing is claimed."""

import pytest
import torch
from clients import patterns
from clients.layers import E, H, Layer, X, elsewhere, split
from torch import nn

from dit_shd import capture
from dit_shd.attention.recording.results import AttentionResult
from dit_shd.attention.recording.storage import same_memory


class Gating(patterns.Gating):
    """What a product makes of the result gates it, before W^O."""

    def __init__(self, gate=torch.sigmoid) -> None:
        super().__init__()
        self.bend = gate

    def forward(self, x):
        y = elsewhere(*split(self.qkv(x)))
        return self.proj(y * self.bend(self.gate(y)))


class GatedByWhole(Gating):
    """The same, made by a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(E, 5), nn.Linear(5, E))


class GatingAfter(Gating):
    """After W^O; the gate is not W^O."""

    def forward(self, x):
        y = elsewhere(*split(self.qkv(x)))
        return self.bend(self.gate(y)) * self.proj(y)


class ScaledFromOne(Layer):
    """A gate that begins at exactly one, so that the rows of a first forward arrive as they were."""

    def __init__(self, trains: bool, change=lambda y, scale: y * (1 + scale)) -> None:
        super().__init__()
        self.scale, self.change = nn.Parameter(torch.zeros(E), requires_grad=trains), change

    def forward(self, x):
        return self.proj(self.change(elsewhere(*split(self.qkv(x))), self.scale).contiguous())


class Silent(Layer):
    """Zeros at first: what arrives cannot be known again."""

    def __init__(self) -> None:
        super().__init__()
        self.mute = True

    def forward(self, x):
        q, k, v = split(self.qkv(x))
        return x + self.proj(elsewhere(q, k, v * (not self.mute)))


def recorded(model):
    with torch.no_grad(), capture(model) as captures:
        model(*X()["args"])
    return captures["0"]


@pytest.mark.parametrize("gate", [torch.sigmoid, torch.tanh, torch.nn.functional.silu, nn.Sigmoid()])
def test_a_product_that_makes_a_gate_is_no_projection(gate):
    found = recorded(nn.Sequential(Gating(gate)).eval())
    assert found.out is None
    assert "0.gate makes of it goes through" in found.why_no_out


def test_a_module_that_makes_a_gate_is_none_either():
    found = recorded(nn.Sequential(GatedByWhole()).eval())
    assert found.out is None and "gate" in found.why_no_out


def test_beside_a_gate_the_projection_is_the_other():
    model = nn.Sequential(GatingAfter()).eval()
    assert torch.equal(recorded(model).out.flatten(0, 1), model[0].proj.weight.t())


@pytest.mark.parametrize("trains", [True, False])
def test_a_gate_that_begins_at_one_is_a_gate_if_it_trains(trains):
    model = nn.Sequential(ScaledFromOne(trains))
    with capture(model) as captures:
        model(*X()["args"])
    if trains:
        assert captures["0"].out is None and "mul in 0 comes first" in captures["0"].why_no_out
    else:
        assert torch.equal(captures["0"].out.flatten(0, 1), model[0].proj.weight.t())


@pytest.mark.parametrize("gated", [True, False])
def test_a_sum_that_begins_at_nothing_is_no_gate_but_what_follows_may_be(gated):
    """What a head adds still goes through W^O."""
    model = nn.Sequential(ScaledFromOne(True, lambda y, scale: (y + scale) / ((1 + scale) if gated else 1.0)))
    with capture(model) as captures:
        model(*X()["args"])
    assert (captures["0"].out is None) is gated


def test_several_products_leave_a_doubt():
    found = recorded(nn.Sequential(patterns.Twice()).eval())
    assert found.out is None
    assert "several products (of 0.proj and 0.gate)" in found.why_no_out


def test_results_that_were_all_zeros_are_looked_for_again():
    model = nn.Sequential(Silent()).eval()
    assert recorded(model).out is None
    model[0].mute = False
    assert torch.equal(recorded(model).out.flatten(0, 1), model[0].proj.weight.t())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rows_are_known_again_by_all_of_their_bits(dtype):
    mixed = torch.randn(2, H, 6, E // H, generator=torch.Generator().manual_seed(0)).to(dtype)
    result, rows = AttentionResult(mixed, mixed), mixed.transpose(1, 2).flatten(2)
    assert result.among(rows[:, 2:5]).tolist() == [2, 3, 4]
    assert result.among(rows.flip(1)).tolist() == list(range(6))
    assert result.among(rows[1:, :1]).tolist() == [0]
    assert result.among(rows.double()).tolist() == list(range(6))
    changed = rows.clone()
    changed.view({8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize])[..., -1] ^= 1
    assert result.among(changed).tolist() == []


def test_memory_is_that_of_a_storage_also_on_the_meta_device():
    for device in ("cpu", "meta"):
        one, other = torch.empty(2, 3, device=device), torch.empty(2, 3, device=device)
        assert same_memory(one, one.view(6)) and same_memory(one.t(), one)
        assert not same_memory(one, other)
        assert not same_memory(None, other)


def test_on_the_meta_device_nothing_is_claimed():
    with torch.device("meta"):
        model, x = nn.Sequential(Layer()).eval(), torch.empty(2, 6, E)
    with torch.no_grad(), capture(model) as captures:
        model(x)
    assert captures["0"].shape == (2, H, 6, 6)
    assert captures["0"].out is None and "meta device" in captures["0"].why_no_out


class BesideMLP(Layer):
    """One product for an MLP and the attention behind it, as in FLUX's single blocks; by a parameter alone, or not."""

    def __init__(self, bare: bool) -> None:
        super().__init__()
        self.mlp, self.proj, self.bare = nn.Linear(E, 8), nn.Linear(8 + E, E, bias=False), bare

    def forward(self, x):
        both = torch.cat([self.mlp(x), elsewhere(*split(self.qkv(x)))], -1)
        return nn.functional.linear(both, self.proj.weight) if self.bare else self.proj(both)


@pytest.mark.parametrize("bare", [False, True])
def test_the_columns_that_attention_arrives_at_are_its_projection(bare):
    model = nn.Sequential(BesideMLP(bare)).eval()
    torch.testing.assert_close(recorded(model).out.flatten(0, 1), model[0].proj.weight[:, 8:].T)
