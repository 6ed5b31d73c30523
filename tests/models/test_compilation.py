"""Compiled blocks: of dit_shd by what they have in common, of others as a whole; for good or for a while."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from dit_shd.models.compilation import compile_blocks, compiled_blocks, is_compiled
from dit_shd.models.families.dit import DiT


class Part(nn.Module):
    """PyTorch leaves its own classes out before 2.10."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return nn.functional.silu(self.linear(x))


class Others(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Part() for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def ours():
    torch.manual_seed(0)
    model = DiT(8, 2, 4, 3, 2, 4, num_classes=3).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    return model, (torch.randn(2, 4, 8, 8), torch.tensor([1, 900]), torch.tensor([0, 1]), False)


CASES = {
    "ours": ours,
    "of others": lambda: (Others(), (torch.randn(2, 4),)),
    "without blocks": lambda: (Part(), (torch.randn(2, 4),)),
}


def result(model, given):
    with torch.no_grad():
        output = model(*given)
    return output[0] if isinstance(output, tuple) else output


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", CASES)
def test_blocks_are_compiled_for_a_while_as_one_graph(name):
    model, given = CASES[name]()
    want = result(model, given)
    with compiled_blocks(model, "eager"):
        torch.testing.assert_close(result(model, given), want)
    assert counters["stats"]["unique_graphs"] == 1
    parts = [module for module in model.modules() if is_compiled(module)]
    assert parts == []
    with compiled_blocks(model, "eager"), pytest.raises(ZeroDivisionError), compiled_blocks(model, "aot_eager"):
        raise ZeroDivisionError
    torch.testing.assert_close(result(model, given), want)
    assert counters["stats"]["unique_graphs"] == 1


def test_a_copy_of_a_compiled_model_is_a_model_of_its_own():
    model, given = ours()
    compile_blocks(model, "eager")
    want = result(model, given)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for p in model.parameters():
            p.data.add_(0.1)
        torch.testing.assert_close(result(other, given), want)
        for p in model.parameters():
            p.data.sub_(0.1)
