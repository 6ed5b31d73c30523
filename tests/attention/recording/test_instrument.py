"""Copies and pickles of a model that is recorded are plain models; what is set in between stays."""

import copy
import io
import pickle

import pytest
import small_families
import torch
from clients.layers import E, X
from clients.patterns import Doors
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn

from dit_shd import SHDAttnProcessor, attach_processors, capture


class Entered:
    """capture(model), entered."""

    def __init__(self, model: nn.Module):
        self._context = capture(model)
        self.captures = self._context.__enter__()

    def detach(self) -> None:
        self._context.__exit__(None, None, None)


def foreign():
    return small_families.diffusers_dit()


def mdt():
    return small_families.build("mdt")


def run(model):
    if isinstance(model, Doors):
        return model(*X()["args"])
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    output = model(x, torch.tensor([1, 9]), torch.tensor([0, 2]), return_dict=False)
    return output[0]


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # of our own making, in memory


WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model)), "torch.save": saved}


def marks(model):
    found = [key for m in model.modules() for key in vars(m) if "dit_shd" in key]
    found += [n for n, m in model.named_modules() if getattr(m, "recorder", None) is not None]
    found += [n for n, m in model.named_modules() if isinstance(getattr(m, "processor", None), SHDAttnProcessor)]
    return found + [n for n, m in model.named_modules() if "_dit_shd_plain" in vars(type(m))]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize(
    ("build", "record"), [(foreign, attach_processors), (foreign, Entered), (Doors, Entered), (mdt, Entered)]
)
def test_a_copy_is_a_plain_model(build, record, ran, way):
    """Made before the first forward or with captured tensors at hand: it runs, and leaves the captures alone."""
    model = build().eval()
    own = {name: type(m) for name, m in model.named_modules()}
    recorded = record(model)
    if ran:
        run(model)  # with a graph: captured tensors could not be copied
    other = WAYS[way](model)
    assert marks(other) == []
    assert {name: type(m) for name, m in other.named_modules()} == own
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))
    kept = dict(recorded.captures)
    with torch.no_grad():
        torch.testing.assert_close(run(other), run(copy.deepcopy(other)))
        assert dict(recorded.captures) == kept  # neither of the copies was recorded
        assert torch.equal(run(model), run(other))
    assert len(recorded.captures) > 0
    recorded.detach()
    assert marks(model) == []
    with torch.no_grad(), capture(other) as captures:  # a copy can be recorded like any model
        run(other)
    assert len(captures) > 0


@pytest.mark.parametrize("record", [attach_processors, Entered])
def test_a_users_processor_set_in_between_stays_and_works(record):
    class Counting(AttnProcessor2_0):
        calls = 0

        def __call__(self, *args, **kwargs):
            self.calls += 1
            return super().__call__(*args, **kwargs)

    model = foreign()
    first, second = (block.attn1 for block in model.transformer_blocks)
    own, mine = second.processor, Counting()
    with torch.no_grad():
        plain = run(model)
        recorded = record(model)
        run(model)
        first.set_processor(mine)
        assert torch.equal(run(model), plain)
        assert mine.calls == 1
        recorded.detach()
        assert first.processor is mine and second.processor is own
        assert torch.equal(run(model), plain)
    assert mine.calls == 2
    assert marks(model) == []


def adapted(block):
    """A low-rank adapter injected around W^O, as load_lora_weights does."""
    block.proj = Adapter(block.proj)


def replaced(block):
    block.proj = nn.Linear(E, E)


class Adapter(nn.Module):
    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(E, 2, bias=False), nn.Linear(2, E, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize("change", [adapted, replaced])
@pytest.mark.parametrize("inside", [True, False])
def test_modules_that_change_in_between_are_found_again(change, inside):
    """Inside of a capture or between two: W^O is the new one, and layers that are new are recorded."""
    model = Doors().eval()
    with torch.no_grad(), capture(model):
        run(model)
        if inside:
            change(model.blocks[0])
    with torch.no_grad(), capture(model) as captures:
        run(model)
        if not inside:
            change(model.blocks[0])
        model.blocks[1] = copy.deepcopy(model.blocks[0])
        for _ in range(2):
            run(model)
            assert list(captures) == ["blocks.0", "blocks.1"]
            proj = model.blocks[0].proj
            want = proj(torch.eye(E)) - proj(torch.zeros(E))
            for found in captures.values():
                torch.testing.assert_close(found.out.flatten(0, 1), want, rtol=0, atol=1e-6)
    assert marks(model) == []


def test_a_forward_that_was_wrapped_while_it_was_recorded_goes_on_working():
    """As accelerate's hooks wrap it: the model was broken afterwards, by a class of ours in super()."""
    model = Doors().eval()
    want = run(model)
    with capture(model) as captures:
        run(model)
        for block in model.blocks:
            block.forward = lambda x, inside=block.forward: inside(x)
        run(model)
        maps = {name: each.map() for name, each in captures.items()}
    assert torch.equal(run(model), want)
    with capture(model) as captures:
        assert torch.equal(run(model), want)
    assert list(captures) == list(maps)
    assert all(torch.equal(each.map(), maps[name]) for name, each in captures.items())
