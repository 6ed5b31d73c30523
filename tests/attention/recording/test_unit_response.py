"""A module that is asked for its weights is as it was, for a graph that holds its buffers, too."""

import copy

import pytest
import torch
from small_attention import Attention, E, Net, inputs
from torch import nn

from dit_shd import SHD, capture


class OfTokens(nn.BatchNorm1d):
    """Of features that come last."""

    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Normed(Attention):
    """W^O is a linear layer and a batch norm after it."""

    def __init__(self, **options):
        super().__init__(**options)
        self.proj = nn.Sequential(nn.Linear(E, E), OfTokens(E))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_batch_norm_in_w_o_trains_from_the_first_step_on(frozen):
    """Its statistics were written back in place, after the graph of the forward had saved them: backward failed."""
    torch.manual_seed(0)
    teacher, student = Net(heads=4).eval(), Net(make=Normed, heads=2)
    for block in student.blocks:
        block.proj.train(not frozen)
    plain = copy.deepcopy(student)
    names = dict(student.named_buffers())
    for seed in range(3):
        with capture(teacher) as t, capture(student) as s:
            with torch.no_grad():
                teacher(inputs(seed))
            found, want = student(inputs(seed)), plain(inputs(seed))
        torch.testing.assert_close(found, want, rtol=0, atol=0)
        loss = found.square().mean() + 0 * SHD()(t, s)
        loss.backward()
        want.square().mean().backward()
        for a, b in zip(student.parameters(), plain.parameters()):
            torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)
        for (name, a), b in zip(student.named_buffers(), plain.buffers()):
            assert a is names[name] and torch.equal(a, b)
    if frozen:
        weight, norm = student.blocks[0].proj[0].weight, student.blocks[0].proj[1]
        scaled = weight.T * norm.weight / (norm.running_var + norm.eps).sqrt()
        torch.testing.assert_close(s["blocks.0"].out.flatten(0, 1), scaled)


def test_what_a_module_does_to_its_buffers_while_it_is_asked_does_not_stay():
    """Also one that puts others in their place, or that two names share."""

    class Counts(nn.Linear):
        def __init__(self):
            super().__init__(E, E)
            self.register_buffer("runs", torch.zeros(()))
            self.register_buffer("same", self.runs)
            self.register_buffer("last", torch.zeros(()))

        def forward(self, x):
            self.runs.add_(1)
            assert self.same is self.runs
            self.last = self.runs * 2
            return super().forward(x) * 1.5

    class Counted(Attention):
        def __init__(self):
            super().__init__()
            self.proj = Counts()

    model = Net(depth=1, make=Counted).eval()
    proj = model.blocks[0].proj
    for forward in (1, 2, 3):
        with torch.no_grad(), capture(model) as captures:
            model(inputs())
        torch.testing.assert_close(captures["blocks.0"].out.flatten(0, 1), proj.weight.T * 1.5)
        assert proj.runs == forward and proj.same is proj.runs and proj.last == 2 * forward


class Low(Attention):
    """W^O is two layers."""

    def __init__(self, **options):
        super().__init__(**options)
        self.proj = nn.Sequential(nn.Linear(E, 8), nn.Linear(8, E))


@pytest.mark.parametrize("inside", [False, True])
def test_hooks_are_not_told_of_unit_rows(inside):
    """What a hook kept last, as distillation of features does, was the weights' rows, and counts were off."""
    model, kept, times = Net(make=Low).eval().requires_grad_(False), [], []
    proj = model.blocks[0].proj
    (proj[1] if inside else proj).register_forward_hook(lambda module, args, output: kept.append(output))
    proj.register_forward_pre_hook(lambda module, args: times.append("begin"))
    proj.register_forward_hook(lambda module, args, kwargs, output: times.append("end"), with_kwargs=True)
    model(inputs())
    want, weight = kept.pop(), (proj[1].weight @ proj[0].weight).T
    times.clear()
    for _ in range(3):
        with torch.no_grad(), capture(model) as captures:
            model(inputs())
        torch.testing.assert_close(captures["blocks.0"].out.flatten(0, 1), weight)
        assert torch.equal(kept.pop(), want) and not kept
        assert times == ["begin", "end"]
        times.clear()


@pytest.mark.parametrize("before", [False, True])
def test_hooks_that_have_a_part_in_a_product_are_asked_with_it(before):
    model = Net(make=Low).eval().requires_grad_(False)
    proj, low = model.blocks[0].proj, torch.randn(E, E)
    if before:
        proj.register_forward_pre_hook(lambda module, args: (args[0] @ low,))
    else:
        proj.register_forward_hook(lambda module, args, output: output @ low)
    weight = (proj[1].weight @ proj[0].weight).T
    for _ in range(2):
        with torch.no_grad(), capture(model) as captures:
            model(inputs())
        want = low @ weight if before else weight @ low
        torch.testing.assert_close(captures["blocks.0"].out.flatten(0, 1), want, rtol=1e-4, atol=1e-4)


def test_a_hook_that_comes_later_and_has_a_part_is_asked_too():
    model, low = Net(make=Low).eval().requires_grad_(False), torch.randn(E, E)
    proj = model.blocks[0].proj
    weight = (proj[1].weight @ proj[0].weight).T
    with torch.no_grad(), capture(model) as captures:
        for hooked in (False, True, True):
            if hooked and not proj._forward_hooks:
                proj.register_forward_hook(lambda module, args, output: output + args[0] @ low)
            model(inputs())
            want = weight + low if hooked else weight
            torch.testing.assert_close(captures["blocks.0"].out.flatten(0, 1), want, rtol=1e-4, atol=1e-4)


def test_a_hook_with_a_part_is_asked_where_other_columns_are_beside():
    """As in FLUX's single blocks, whose W^O and second matrix of the MLP are one."""

    class Parallel(Attention):
        def __init__(self, **options):
            super().__init__(**options)
            self.proj = nn.Sequential(nn.Linear(2 * E, 8), nn.Linear(8, E))

        def forward(self, x, mask=None):
            made = torch.nn.functional.scaled_dot_product_attention(*self.heads_of(x)).transpose(1, 2).flatten(2)
            return self.proj(torch.cat([made, x.tanh()], -1))

    model, low = Net(make=Parallel).eval().requires_grad_(False), torch.randn(2 * E, E)
    proj = model.blocks[0].proj
    proj.register_forward_hook(lambda module, args, output: output + args[0] @ low)
    want = ((proj[1].weight @ proj[0].weight).T + low)[:E]
    for _ in range(2):
        with torch.no_grad(), capture(model) as captures:
            model(inputs())
        torch.testing.assert_close(captures["blocks.0"].out.flatten(0, 1), want, rtol=1e-4, atol=1e-4)


def test_two_who_look_at_a_new_model_do_not_see_what_the_other_asks():
    """W^O had "arrived at several products" for good, where two captures were open in the first forward."""
    model = Net(make=Low).eval().requires_grad_(False)
    for _ in range(2):
        with torch.no_grad(), capture(model) as t, capture(model) as s:
            model(inputs())
        for block, name in zip(model.blocks, ("blocks.0", "blocks.1")):
            for captures in (t, s):
                want = (block.proj[1].weight @ block.proj[0].weight).T
                torch.testing.assert_close(captures[name].out.flatten(0, 1), want)
