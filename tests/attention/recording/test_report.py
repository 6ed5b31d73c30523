"""What became of every call: recorded, or named with the reason; why nothing was recorded."""

import logging

import pytest
import torch
from clients.layers import E, Layer, X
from clients.patterns import ByHand, Cross, Doors, Gated, Looped, two
from torch import nn

from dit_shd import SHD, capture
from dit_shd.attention.recording import report as report_file
from dit_shd.attention.recording.report import why_empty
from dit_shd.core.errors import UserError

(INPUT,) = X()["args"]


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cross, self.gated, self.looped = Cross(), Gated(), Looped()

    def forward(self, a, b):
        return self.looped(self.gated(self.cross(a, b)))


def reported(layers=None):
    model = Both().eval()
    with torch.no_grad(), capture(model, layers) as captures:
        model(*two(6, 6)()["args"])
        return captures, captures.report()


def test_every_call_is_recorded_or_named():
    captures, report = reported()
    lines = {line.layer: line for line in report.lines}
    assert list(lines) == ["cross.mine", "cross", "gated", "looped.block"]
    assert lines["cross.mine"].projections == ("cross.mine.proj",)
    assert lines["cross.mine"].shapes == {"cross.mine": (2, 4, 6, 6)}
    assert not lines["cross"].shapes
    assert "cross-attention is recorded when it is named" in lines["cross"].left_out
    assert "does not arrive unchanged" in lines["gated"].projections[0]
    assert list(lines["looped.block"].shapes) == ["looped.block", "looped.block#2", "looped.block#3"]
    assert {name for line in report.lines for name in line.shapes} == captures.keys()
    text = str(report)
    assert text.startswith("6 calls of attention in 4 layers, 5 captures\n")
    assert "cross: cross; left out: cross-attention is recorded when it is named: layers=..." in text


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn1, self.attn2 = Layer(), Cross()

    def forward(self, x):
        return self.attn2(self.attn1(x), INPUT)


def test_layers_that_are_alike_share_a_line():
    model = nn.Sequential(*(Block() for _ in range(11)), Layer()).eval()
    with torch.no_grad(), capture(model) as captures:
        model(INPUT)
    head, *lines = str(captures.report()).splitlines()
    assert head == "34 calls of attention in 34 layers, 34 captures"
    assert [line.split(":")[0].strip() for line in lines] == [
        "0.attn1 ... 10.attn1 (11 layers)",
        "0.attn2.mine ... 10.attn2.mine (11 layers)",
        "0.attn2 ... 10.attn2 (11 layers)",
        "11",
    ]


def test_what_was_not_asked_for_says_so():
    captures, report = reported("cross")
    assert list(captures) == ["cross"]
    assert [line.left_out for line in report.lines] == ["not asked for", "", "not asked for", "not asked for"]


def test_it_is_logged_once(caplog):
    report_file._log_once.cache_clear()
    for _ in range(2):  # the same of another model, too
        model = nn.Sequential(Layer()).eval()
        with caplog.at_level(logging.INFO, "dit_shd"), torch.no_grad(), capture(model):
            for _ in range(3):
                model(*X()["args"])
    assert [r.getMessage().splitlines()[0] for r in caplog.records] == ["1 calls of attention in 1 layers, 1 captures"]


def test_modules_that_are_attention_by_name_and_silent_are_in_the_error():
    import pytest

    from dit_shd.core.errors import UserError

    class Attention(ByHand):
        pass

    model = nn.Sequential(Attention())
    with pytest.raises(UserError, match=r"0 \(Attention\) ran without calling"), capture(model):
        model(torch.zeros(1, 3, E))


def test_why_there_is_nothing():
    assert "neither Net nor a method of it was called" in why_empty("Net", [], False, False)
    assert "no attention ran inside encode and size of Net" in why_empty("Net", ["encode", "size"], False, False)
    assert "ended in an error" in why_empty("Net", ["forward"], False, True)
    assert "sink=" in why_empty("Net", ["forward"], True, False)


class Pieces(Doors):
    size = 3

    def parameters_in_all(self):
        return sum(p.numel() for p in self.parameters())

    def failing(self, x):
        self.blocks[0](x)
        raise RuntimeError("boom")


def nothing(model):
    """Not called."""


def part(model):
    model.blocks[0](INPUT)


def helper(model):
    model.parameters_in_all()


def failing(model):
    model(INPUT)
    with pytest.raises(RuntimeError):
        model.failing(INPUT)


def failing_forward(model):
    model(INPUT)
    with pytest.raises(RuntimeError):
        model(INPUT[..., 1:])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (nothing, "neither Pieces nor a method of it was called"),
        (part, "if a part of it was, by itself, hand that part to capture"),
        (helper, "no attention ran inside parameters_in_all of Pieces"),
        (failing, "the last forward of Pieces .* ended in an error"),
        (failing_forward, "the last forward of Pieces .* ended in an error"),
    ],
)
def test_empty_captures_say_what_ran(how, message):
    model, student = Pieces().eval(), Pieces().eval()
    with capture(student) as s:
        student(INPUT)
    for _ in range(2):
        with capture(model) as t:
            how(model)
        assert len(t) == 0
        with pytest.raises(UserError, match=f"the teacher's captures are empty: .*{message}") as error:
            SHD()(t, s)
        assert "run it inside" not in str(error.value)
