"""Memory that calls of attention share: maps of what was written to since are refused, in every forward."""

import oracle
import pytest
import torch
import torch.nn.functional as F
from small_attention import Attention, E, H, Net, inputs

from dit_shd import SHD, capture
from dit_shd.core.errors import UserError

pytestmark = pytest.mark.usefixtures("seeded")


class InWorkspace(Attention):
    """Its keys, or what `what` says, lie in memory that it is given."""

    what = "key"

    def forward(self, x, memory):
        of = dict(zip(("query", "key", "value"), self.heads_of(x)))
        of[self.what] = memory.copy_(of[self.what])
        return self.proj(F.scaled_dot_product_attention(*of.values()).transpose(1, 2).flatten(2))


class InChunks(InWorkspace):
    """Two halves of the samples, one after the other, whose keys lie in the same memory."""

    def forward(self, x, memory):
        return torch.cat([InWorkspace.forward(self, half, memory[: len(half)]) for half in x.chunk(2)])


class InLine(Net):
    """A model that calls attention itself."""

    def forward(self, x, memory):
        for block in self.blocks:
            x = x + InWorkspace.forward(block, x, memory)
        return x


class Spoilt(InWorkspace):
    """What it worked with is written to when nobody needs it any more."""

    def forward(self, x, memory):
        made = super().forward(x, memory)
        memory.zero_()
        return made


SHARED = {
    "layers": lambda: Net(make=InWorkspace),
    "calls of one module": lambda: Net(depth=1, make=InChunks),
    "calls of the model": lambda: InLine(make=InWorkspace),
    "one layer's last act": lambda: Net(depth=1, make=Spoilt),
}


@pytest.mark.parametrize("how", SHARED)
@pytest.mark.parametrize("what", ["query", "key", "value"])
@pytest.mark.parametrize("first", [False, True], ids=["counted", "not counted"])
@pytest.mark.parametrize("then", [False, True], ids=["counted", "not counted"])
def test_written_memory_is_refused_in_every_forward(how, what, first, then, monkeypatch):
    """Only the first forward was refused (a cell of a notebook that was run twice), in inference mode not even that."""
    monkeypatch.setattr(InWorkspace, "what", what)
    model = SHARED[how]().eval()
    for inference in (first, then, then):
        message = "its queries, keys, values or mask were changed in place after it ran"
        refused, counted = pytest.raises(UserError, match=message), torch.inference_mode(inference)
        with counted, torch.no_grad(), capture(model), refused:
            model(inputs(), memory=torch.empty(2, H, 6, E // H))


class Filled(Net):
    """Layers that share a mask, which none or each fills anew."""

    anew = True

    def forward(self, x):
        mask = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
        for i, block in enumerate(self.blocks):
            mask.copy_(torch.ones(6, 6).tril(i if self.anew else 0))
            x = x + block(x, mask=mask.expand(2, 1, 6, 6))
        return x


def test_masks_that_layers_share_in_inference_mode(monkeypatch):
    model = Filled().eval()
    for _ in range(2):
        with torch.inference_mode(), capture(model), pytest.raises(UserError, match=r"blocks\.0: .* changed in place"):
            model(inputs())
    monkeypatch.setattr(Filled, "anew", False)
    model = Filled().eval()  # written to, with the same numbers
    for _ in range(2):
        with torch.inference_mode(), capture(model) as captures:
            model(inputs())
        assert len(captures) == 2


@pytest.mark.parametrize("inference", [False, True])
def test_layers_that_share_what_none_writes_to_are_recorded(inference):
    """Keys and values of the first layer, as decoders with a cache for all layers have them; and a mask."""

    class First(Net):
        def forward(self, x):
            _, key, value = self.blocks[0].heads_of(x)
            mask = torch.ones(6, 6, dtype=torch.bool).tril()
            for block in self.blocks:
                made = F.scaled_dot_product_attention(block.heads_of(x)[0], key, value, attn_mask=mask)
                x = x + block.proj(made.transpose(1, 2).flatten(2))
            return x

    model = First(depth=3).eval()
    for _ in range(2):
        with torch.inference_mode(inference), torch.no_grad(), capture(model) as captures:
            model(inputs())
        assert len(captures) == 3


def test_a_result_that_is_written_to_later_on_is_not_taken_for_what_attention_gave():
    """In a forward whose first one did not write to it."""
    model = Net(depth=1, after=lambda o: o).eval()
    block = model.blocks[0]
    kept = []

    def spoil(*_):
        if len(kept) > 1:
            kept[-1].zero_()

    block.after = lambda o: kept.append(o) or o
    block.proj.register_forward_hook(spoil)
    for forward in range(3):
        with torch.no_grad(), capture(model) as captures:
            model(inputs())
        layer = captures["blocks.0"]
        assert (layer.mixed is None) == (forward > 0) and layer.out is not None
        q, k, _ = block.heads_of(inputs())
        torch.testing.assert_close(layer.map(), oracle.maps(q, k, layer.scale, 0.0))


def test_memory_of_ones_own_is_recorded_and_trains():
    class Apart(Net):
        def forward(self, x):
            for block in self.blocks:
                x = x + block(x, memory=torch.empty(2, block.heads, 6, E // block.heads))
            return x

    teacher, student = Apart(make=InWorkspace).eval(), Apart(make=InWorkspace, heads=2)
    for _ in range(2):
        with capture(teacher) as t, capture(student) as s:
            with torch.no_grad():
                teacher(inputs())
            student(inputs())
        loss = SHD()(t, s)
        loss.backward()
        assert loss > 0
