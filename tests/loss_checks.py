"""A loss by itself, beside an oracle in float64: value, gradients to the student and to what the loss learns."""

import oracle as naive
import torch
from random_captures import random_capture

from dit_shd.attention.capture import Capture
from dit_shd.core.plugins import Plugin
from dit_shd.distillation.losses import LOSSES, Forward, Layer, LayerLoss, Reads
from dit_shd.tasks import Batch

KINDS = {Reads.ATTENTION: "attention", Reads.ATTENTION_OUTPUT: "attention_output", Reads.HIDDEN: "hidden"}


class Weighted(Batch):
    """A batch whose tokens have weights."""

    weights = None

    def row_weight(self, tokens):
        return self.weights


def batch(b=2, step=5, weights=None):
    made = Weighted("plain", step, torch.arange(b) + 3)
    object.__setattr__(made, "weights", weights)
    return made


def tokens(width, depth=2, n=7, b=2, seed=0, grad=False):
    """Block outputs by name."""
    g = torch.Generator().manual_seed(seed)
    drawn = {f"b.{i}": torch.randn(b, n, width, generator=g, dtype=torch.float64) for i in range(depth)}
    return {name: x.requires_grad_(grad) for name, x in drawn.items()}


def captures(heads, depth=2, seed=0, grad=False, **options):
    """Captures by name."""
    found = {}
    for i in range(depth):
        one = random_capture(h=heads, seed=seed + 10 * i, **options)
        if grad:
            for x in (one.query, one.key, one.value, *(one.bias.leaves if one.bias else ())):
                x.requires_grad_()
        found[f"b.{i}"] = one
    return found


def forward(kind, layers):
    """What a loss is given of one model."""
    made = {
        name: Layer(name, attention=x) if isinstance(x, Capture) else Layer(name, hidden=x)
        for name, x in layers.items()
    }
    return Forward(torch.zeros(1), **{KINDS[kind]: made})


def build(name, student=None, teacher=None, given=None, **options):
    """A loss in float64 whose parameters are random."""
    loss = LOSSES.build(Plugin(name, options))
    if student is not None and loss.learns:
        kind = next(iter(loss.reads & KINDS.keys()))
        with torch.no_grad():
            loss.build(forward(kind, student), forward(kind, teacher), given or batch())
    torch.manual_seed(7)
    loss = loss.double()
    for p in loss.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return loss


def term(loss, student, teacher, given=None):
    """What a loss gives for layers of both models."""
    kind = next(iter(loss.reads & KINDS.keys()))
    s, t = forward(kind, student), forward(kind, teacher)
    if not isinstance(loss, LayerLoss):
        return loss.term(s, t, given or batch())
    pairs = loss.begin(list(teacher), s.layers(kind), given or batch())
    for layer in t.layers(kind).values():
        pairs(layer)
    return pairs.term()


def divergence(a, b):
    """KL of every row; 0 log 0 is 0."""
    one = torch.ones(())
    terms = torch.where(a > 0, a, one).log() - torch.where(a > 0, b, one).log()
    return (a * terms).sum(-1)


def maps(c):
    """The maps of a capture."""
    return naive.maps(c.query, c.key, c.scale, None if c.bias is None else c.bias.leaves[0], c.causal)


def leaves(student):
    """The tensors of a student that learn."""
    found = []
    for x in student.values():
        found += [x.query, x.key, x.value, *(x.bias.leaves if x.bias else ())] if isinstance(x, Capture) else [x]
    return [x for x in found if x.requires_grad]


def same(loss, student, teacher, oracle, given=None, rtol=1e-9):
    """Value [b] and gradients are the oracle's, and none reaches the teacher; the value is returned."""
    value, want = term(loss, student, teacher, given).value, oracle()
    torch.testing.assert_close(value, want, rtol=rtol, atol=1e-12)
    way = torch.linspace(0.5, 2, len(want), dtype=torch.float64)  # samples are told apart
    learning = [*leaves(student), *loss.parameters()]
    found, wanted = (torch.autograd.grad((x * way).sum(), learning, allow_unused=True) for x in (value, want))
    for leaf, one, other in zip(learning, found, wanted):
        one, other = (torch.zeros_like(leaf) if x is None else x for x in (one, other))
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-11)
    assert any(x is not None and bool(x.any()) for x in found)
    return value.detach()
