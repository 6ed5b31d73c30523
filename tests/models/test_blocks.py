"""What blocks give: of tuples the stream that was given, of compiled blocks what every call gives, by run."""

from dataclasses import replace

import pytest
import torch
from tiny_pipelines import KINDS
from torch import nn

from dit_shd.core.errors import UserError
from dit_shd.diffusion.adapters import adapter_of_model
from dit_shd.models.blocks import recompute, recorded, recorded_blocks
from dit_shd.tasks.text_to_image import TextToImage


class Block(nn.Module):
    def __init__(self, order="text first"):
        super().__init__()
        self.linear, self.order = nn.Linear(4, 4), order

    def forward(self, hidden_states, encoder_hidden_states=None):
        image = self.linear(hidden_states)
        if encoder_hidden_states is None:
            return image
        text = self.linear(encoder_hidden_states)
        return (text, image) if self.order == "text first" else (image, text)


class Model(nn.Module):
    def __init__(self, *blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, image, text=None):
        for block in self.blocks:
            given = block(image, encoder_hidden_states=text) if text is not None else block(image)
            if isinstance(given, tuple):
                text, image = given if block.order == "text first" else given[::-1]
            else:
                image = given
        return image


def outputs(model, *inputs):
    """By name."""
    given = {}
    with recorded_blocks(model, given.__setitem__):
        last = model(*inputs)
    assert torch.equal(given[list(given)[-1]], last)
    return given


def test_of_two_streams_it_is_the_images():
    model = Model(Block("text first"), Block("image first"))
    given = outputs(model, torch.randn(2, 5, 4), torch.randn(2, 3, 4))
    assert {name: list(x.shape) for name, x in given.items()} == {"blocks.0": [2, 5, 4], "blocks.1": [2, 5, 4]}
    with pytest.raises(UserError, match=r"blocks\.0: gives as many text tokens as image tokens"):
        outputs(model, torch.randn(2, 5, 4), torch.randn(2, 5, 4))


class TextFirst(nn.Module):
    """As the blocks of SD3's public code."""

    def forward(self, context, x, c=None):
        return 2 * context, 3 * x


@pytest.mark.parametrize("by_name", [False, True])
def test_of_two_streams_whose_text_comes_first_it_is_the_image_s(by_name):
    """It had been the text's, which is given first and was given back."""
    context, x, given = torch.randn(2, 3, 4), torch.randn(2, 5, 4), {}
    block = TextFirst()
    with recorded({"block": block}, given.__setitem__):
        block(context=context, x=x) if by_name else block(context, x)
    assert torch.equal(given["block"], 3 * x)


def test_a_block_that_runs_again_has_a_number():
    block = Block()
    given = {}
    with recorded({"b": block}, given.__setitem__):
        block(block(torch.randn(1, 2, 4)))
    assert list(given) == ["b", "b#2"]
    assert not block._forward_hooks


def test_compiled_blocks_give_what_each_call_gives():
    """Recorded or not, in any order: what a first call was recorded by is not part of the code of later ones."""
    model = Model(Block())
    model.blocks[0].compile(backend="eager")
    x = [torch.randn(1, 2, 4) for _ in range(3)]
    model(x[0])
    for one in x:
        assert torch.equal(outputs(model, one)["blocks.0"], model(one))
    before = model.blocks[0]._compiled_call_impl
    outputs(model, x[0])
    assert model.blocks[0]._compiled_call_impl is before


def test_what_gives_no_tensor_is_refused():
    with pytest.raises(UserError, match="Linear: has no list of blocks"):
        outputs(nn.Linear(4, 4), torch.randn(1, 4))

    class Text(Block):
        def forward(self, hidden_states):
            return {"x": hidden_states}

    with pytest.raises(UserError, match=r"blocks\.0: wanted a block that gives a tensor first, found dict"):
        outputs(Model(Text()), torch.randn(1, 2, 4))


@pytest.mark.parametrize("kind", ["chroma"])
def test_blocks_that_run_again_are_given_the_mask_that_they_were_given(kind):
    """Diffusers leaves it out of Chroma's second kind of block, so that padding counted as much as words."""
    torch.manual_seed(0)
    model = KINDS[kind]().transformer.train()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    adapter = adapter_of_model(model)
    (batch,) = TextToImage(side=4, text_tokens=6).example(model, 2, torch.device("cpu"))
    mask = torch.tensor([[True] * 3 + [False] * 3, [True] * 6])
    text = replace(batch.condition, mask=mask)

    def run(other_between=False):
        model.zero_grad()
        output = adapter.predict(model, batch.x_t, batch.t, text)
        if other_between:
            adapter.predict(model, batch.x_t, batch.t, replace(text, mask=~mask))
        output.square().mean().backward()
        return output.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    plain = run()
    recompute(model)
    for again in (run(), run(other_between=True)):
        torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-7)
