"""The zoo itself: every class of diffusers has a tiny model that runs, repeats itself and listens to its inputs."""

import diffusers
import pytest
import torch
import torch.nn.functional as F
import zoo
from torch.overrides import TorchFunctionMode


def test_every_class_is_tried_or_says_why_not():
    known = zoo.ENTRIES.keys() | zoo.UNTRIED.keys()
    assert not zoo.ENTRIES.keys() & zoo.UNTRIED.keys()
    if diffusers.__version__ == zoo.VERSION:
        assert known == zoo.classes().keys()


@pytest.fixture(params=sorted(zoo.ENTRIES))
def name(request) -> str:
    if request.param not in zoo.classes():
        pytest.skip(f"diffusers {diffusers.__version__} has no {request.param}")
    return request.param


@torch.no_grad()
def test_a_model_repeats_itself_and_depends_on_its_inputs_and_its_attention(name):
    model = zoo.build(name)
    out = zoo.forward(model, zoo.draw(name))
    assert out.isfinite().all()
    assert torch.equal(out, zoo.forward(zoo.build(name), zoo.draw(name)))
    assert not torch.equal(out, zoo.forward(model, zoo.draw(name, seed=1)))
    with WithoutAttention() as calls:
        silent = zoo.forward(model, zoo.draw(name))
    if calls.count:
        assert (out - silent).abs().max() > 1e-3 * out.abs().max()


class WithoutAttention(TorchFunctionMode):
    """Softmax attention gives zeros."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is not F.scaled_dot_product_attention:
            return out
        self.count += 1
        return torch.zeros_like(out)
