"""Which input tokens come from, followed through the functions that models are made of; the same on every device."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from dit_shd.attention.recording.lineage import OWN, Lineages


class Following(TorchFunctionMode):
    def __init__(self, lineages):
        super().__init__()
        self.lineages = lineages

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.lineages.follow(func, args, kwargs or {}, result)
        return result


@pytest.fixture(params=["cpu", "meta"])
def device(request):
    return request.param


def traced(make, device, **shapes):
    """The streams, the runs (length, streams) and the lineage of what `make` returns."""
    lineages = Lineages()
    inputs = {name: torch.empty(shape, device=device) for name, shape in shapes.items()}
    for name, tensor in inputs.items():
        lineages.name(tensor, name)
    with Following(lineages):
        result = make(**inputs)
    found = lineages.of(result)
    if found is None:
        return None
    return "+".join(sorted(found.streams)), [(n, "+".join(sorted(s))) for n, s in found.segments]


X, C = {"x": (2, 9, 8)}, {"c": (2, 5, 8)}
ONE = ("x", [])
BOTH = ("c+x", [(5, "c"), (9, "x")])


@pytest.mark.parametrize(
    ("make", "shapes", "want"),
    [
        (lambda x: F.layer_norm(x, (8,)) * 2 + 1, X, ONE),
        (
            lambda x: (
                F.linear(x, torch.empty(24, 8, device=x.device)).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)[0]
            ),
            X,
            ONE,
        ),
        (lambda x, t: x * t[:, None] + t[:, None], {**X, "t": (2, 8)}, ONE),
        (lambda x: x + nn.Parameter(torch.empty(1, 9, 8, device=x.device)), X, ONE),
        (lambda x: nn.Parameter(torch.empty(1, 9, 8, device=x.device)) + x, X, ONE),
        (lambda x, c: torch.cat([c, x], 1), X | C, BOTH),
        (lambda x, c: torch.cat([c, x], dim=-2).unflatten(2, (2, 4)).transpose(1, 2), X | C, BOTH),
        (lambda x, c: torch.cat([c, x], 1)[:, 5:], X | C, ("x", [])),
        (lambda x, c: torch.cat([c, x], 1)[:, :5] * 2, X | C, ("c", [])),
        (lambda x, c: torch.cat([c, x], 1)[:, 3:], X | C, ("c+x", [(2, "c"), (9, "x")])),
        (lambda x, c: torch.cat([c, x], 1).split([5, 9], 1)[1], X | C, ("x", [])),
        (lambda x, c: torch.cat([torch.cat([c, x], 1), c], 1), X | C, ("c+x", [(5, "c"), (9, "x"), (5, "c")])),
        (lambda x, c: torch.cat([x, x], 2), X | C, ONE),
        (lambda x, c: F.scaled_dot_product_attention(x, c, c), X | C, ONE),
        (lambda x, c: torch.bmm(x, c.transpose(1, 2)), X | C, ONE),
        (
            lambda x: torch.cat([nn.Parameter(torch.empty(2, 3, 8, device=x.device)), x], 1),
            X,
            ("x", [(3, ""), (9, "x")]),
        ),
        # some of the tokens of both, which nobody knows: not the first ones
        (lambda x, c: torch.cat([c, x], 1).index_select(1, torch.arange(5, device=x.device)), X | C, ("c+x", [])),
        (lambda x, c: torch.cat([c, x], 1)[:, [13, 12, 11]], X | C, ("c+x", [])),
    ],
)
def test_tokens_come_from(make, shapes, want, device):
    assert traced(make, device, **shapes) == want


def test_tokens_that_are_written_into_a_buffer(device):
    def make(x, c):
        buffer = torch.empty(2, 14, 8, device=x.device)
        buffer[:, :5] = c
        buffer[:, 5:] = x
        return buffer

    assert traced(make, device, **X, **C)[0] == "c+x"


def test_two_embeddings_of_the_same_words_are_two_sequences():
    lineages, words = Lineages(), torch.zeros(2, 5, dtype=torch.long)
    lineages.name(words, "words")
    table = torch.empty(7, 8)
    with Following(lineages):
        one, other = F.embedding(words, table), F.embedding(words, table)
    assert not lineages.of(one).streams & lineages.of(other).streams


def test_what_is_not_known_is_not_made_up(device):
    lineages = Lineages()
    unknown = torch.empty(2, 9, 8, device=device)
    with Following(lineages):
        assert lineages.of(unknown * 2) is None
    parameter = nn.Parameter(unknown)
    assert lineages.of(parameter).level == OWN
    lineages.inherit(unknown, parameter)
    assert lineages.of(unknown).streams == {"a parameter"}
    lineages.name({"deep": [torch.empty(1)]}, "given")
    assert lineages.all({"a": (unknown,), "b": 3}) == [lineages.of(unknown)]


def test_freed_tensors_leave_nothing(device):
    """Their ids are given again to others, which are not to be taken for them."""
    lineages = Lineages()
    for i in range(200):
        tensor = torch.empty(2, 9, 8, device=device)
        assert lineages.of(tensor) is None
        lineages.name(tensor, f"input {i}")
        del tensor
