"""Which module has W^O in each forward, where that differs."""

import copy
import gc
import logging
from enum import Enum
from weakref import ref

import pytest
import torch
import torch.nn.functional as F
from small_attention import Attention, E, Net, inputs
from torch import nn

from dit_shd import SHD, capture
from dit_shd.core.errors import UserError

pytestmark = pytest.mark.usefixtures("seeded")


class Kind(Enum):
    """What a layer's tokens are."""

    IMAGE = 1
    TEXT = 2


class Modal(Attention):
    """A projection for each kind of tokens, as BEiT-3 and BAGEL have: chosen by a name, or by what a tensor says."""

    def __init__(self, heads=4, wide=False):
        super().__init__(heads=heads)
        self.outs = nn.ModuleDict({name: Low() if wide else nn.Linear(E, E) for name in ("image", "text")})

    def forward(self, x, mode=None, t=None):
        name = mode.name.lower() if isinstance(mode, Kind) else mode or ("image" if t[0] < 0.5 else "text")
        made = F.scaled_dot_product_attention(*self.heads_of(x)).transpose(1, 2).flatten(2)
        return self.outs[name](made)


class Low(nn.Module):
    """A product of two, so that W^O is what it makes of unit rows."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(E, 8, bias=False), nn.Linear(8, E, bias=False)

    def forward(self, x):
        return self.b(self.a(x))

    @property
    def weight(self):
        return self.b.weight @ self.a.weight


def of_early(name):
    return {"t": torch.tensor([0.2 if name == "image" else 0.8])}


def said(caplog):
    return [record for record in caplog.records if record.name == "dit_shd" and record.levelno >= logging.WARNING]


def check(captures, model, name):
    for i, block in enumerate(model.blocks):
        torch.testing.assert_close(captures[f"blocks.{i}"].out.flatten(0, 1), block.outs[name].weight.T)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("given", [lambda name: {"mode": name}, lambda name: {"mode": Kind[name.upper()]}])
def test_each_mode_has_its_own(given, wide, caplog):
    """The first one's had been that of all, without a word."""
    model = Net(make=Modal, wide=wide)
    with torch.no_grad(), capture(model) as captures:
        for name in ("image", "text", "text", "image"):
            model(inputs(), **given(name))
            check(captures, model, name)
    assert not said(caplog)


@pytest.mark.parametrize("wide", [False, True])
def test_what_a_tensor_chooses_is_noticed_once_and_looked_at_from_then_on(wide, caplog):
    """The forward in which it is noticed has none; a module that is asked for its weights has not run."""
    model, student = Net(make=Modal, wide=wide), Net(heads=2)
    with capture(model) as captures, capture(student) as s:
        with torch.no_grad():
            model(inputs(), **of_early("image"))
            check(captures, model, "image")
            model(inputs(), **of_early("image"))
            check(captures, model, "image")
            with caplog.at_level(logging.WARNING):
                model(inputs(), **of_early("text"))
        student(inputs())
        assert captures["blocks.0"].out is None and captures["blocks.0"].map().shape == (2, 4, 6, 6)
        with pytest.raises(
            UserError,
            match=r"blocks\.0 of the teacher: .*blocks\.0\.outs\.image, which had W\^O .* did not run",
        ):
            SHD()(captures, s)
        caplog.clear()
        for name in ("text", "image", "text"):
            with torch.no_grad():
                model(inputs(), **of_early(name))
            check(captures, model, name)
            SHD()(captures, s)
    assert not said(caplog)
    with torch.no_grad(), capture(model) as captures:  # and in another capture
        for name in ("image", "text"):
            model(inputs(), **of_early(name))
            check(captures, model, name)


class Adapted(nn.Module):
    """An adapter of one's own, that may be off."""

    def __init__(self):
        super().__init__()
        self.base, self.a, self.b = nn.Linear(E, E), nn.Linear(E, 4, bias=False), nn.Linear(4, E, bias=False)
        self.on = False

    def forward(self, x):
        return self.base(x) + self.b(self.a(x)) if self.on else self.base(x)

    @property
    def weight(self):
        return self.base.weight + self.b.weight @ self.a.weight if self.on else self.base.weight


class WithAdapter(Attention):
    def __init__(self, heads=4):
        super().__init__(heads=heads)
        self.proj = Adapted()


def test_an_adapter_that_was_off_is_noticed(caplog):
    """W^O had been the base's alone for good."""
    model = Net(make=WithAdapter)
    with torch.no_grad(), capture(model) as captures:
        for on in (False, False, True, True, False, True):
            for block in model.blocks:
                block.proj.on = on
            noticed = bool(said(caplog))
            model(inputs())
            if not noticed and on:
                assert "a Linear beside W^O ran, as it did not in a forward before" in said(caplog)[0].getMessage()
                assert captures["blocks.0"].out is None
                continue
            for i, block in enumerate(model.blocks):
                torch.testing.assert_close(captures[f"blocks.{i}"].out.flatten(0, 1), block.proj.weight.T)
    assert len(said(caplog)) == 1


def test_a_student_in_training_is_not_asked(caplog):
    """Nobody reads its W^O: it trains on as fast as any."""
    model = Net(make=Modal)
    with capture(model) as captures:
        for name in ("image", "text", "text"):
            model(inputs(), **of_early(name))
            assert len(captures) == 2
    assert not said(caplog)


@pytest.mark.parametrize("reads", [True, False])
def test_a_step_whose_captures_were_handed_on_is_refused_if_their_w_o_was_read(reads, caplog):
    model, seen = Net(make=Modal), {}

    def take(name, layer):
        seen[name] = layer
        assert (layer.out if reads else layer.map()) is not None

    with torch.no_grad(), capture(model, sink=take):
        model(inputs(), **of_early("image"))
        if reads:
            with pytest.raises(UserError, match=r"its loss was of that W\^O, so leave this step out"):
                model(inputs(), **of_early("text"))
        else:
            model(inputs(), **of_early("text"))
            assert "this forward has none" in caplog.text
        model(inputs(), **of_early("text"))
    check(seen, model, "text")


@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_those_that_run_are_not_asked_for_again(backend, caplog):
    """In compiled blocks, in forwards of other lengths, in copies."""
    model = Net()
    for block in model.blocks if backend else ():
        block.compile(backend=backend)
    with torch.no_grad(), capture(model) as captures:
        for seed in range(4):
            model(inputs(seed))
            for i, block in enumerate(model.blocks):
                torch.testing.assert_close(captures[f"blocks.{i}"].out.flatten(0, 1), block.proj.weight.T)
        copied = copy.deepcopy(model)
    assert not said(caplog) and type(copied.blocks[0].proj) is type(model.blocks[0].proj) is nn.Linear
    torch.testing.assert_close(copied(inputs()), model(inputs()))


def test_nothing_of_a_model_is_kept_by_a_capture_that_was_closed():
    """Its modules that hold W^O had lived on until the garbage collector came."""
    model = Net()
    with torch.no_grad(), capture(model):
        model(inputs())
    with torch.no_grad(), capture(model) as captures:
        model(inputs())
    gc.collect()
    gc.disable()
    try:
        kept = ref(model.blocks[0].proj)
        del model, captures
        assert kept() is None
    finally:
        gc.enable()
