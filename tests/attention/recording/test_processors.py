"""Processors of diffusers that are recorded: they stay at work, show, and leave."""

import pytest
import small_families
import torch
import zoo
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from small_dits import dit, run

from dit_shd import SHD, SHDAttnProcessor, attach_processors, capture
from dit_shd.core.errors import UserError


def test_processors_stay_at_work_show_and_leave():
    """A pipeline's calls go through them; the module's own processor is inside, and back after detach."""
    name = "PixArtTransformer2DModel"
    model, inputs = zoo.build(name), zoo.draw(name)
    own = model.attn_processors
    with torch.no_grad():
        plain = zoo.forward(model, inputs)
        attached = attach_processors(model)
        shown = model.attn_processors
        assert sum(isinstance(p, SHDAttnProcessor) for p in shown.values()) == 2  # attn1 of two blocks
        assert all(isinstance(shown[k], type(p)) for k, p in own.items())
        assert torch.equal(zoo.forward(model, inputs), plain)
        assert list(attached.captures) == ["transformer_blocks.0.attn1", "transformer_blocks.1.attn1"]
        attached.detach()
    assert model.attn_processors == own
    with attach_processors(model) as captures, pytest.raises(RuntimeError, match="boom"):
        raise RuntimeError("boom")
    assert model.attn_processors == own
    assert len(captures) == 0


@pytest.mark.parametrize("before", [capture, attach_processors])
def test_processors_of_a_model_that_was_recorded_before_take_each_layer_once(before):
    """From the second forward on each had been there twice, and with it a loss and its gradient were twice as large."""
    name = "PixArtTransformer2DModel"
    model, inputs = zoo.build(name), zoo.draw(name)
    with torch.no_grad():
        with before(model):
            zoo.forward(model, inputs)
        with attach_processors(model) as captures:
            for _ in range(3):
                zoo.forward(model, inputs)
                assert list(captures) == ["transformer_blocks.0.attn1", "transformer_blocks.1.attn1"]


def test_another_backend_or_none_is_refused_by_layer_and_setting():
    model = dit(2)
    model.transformer_blocks[1].attn1.processor._attention_backend = "flash"
    with pytest.raises(UserError, match=r"blocks\.1\.attn1.*'flash'; use model\.set_attention_backend\('native'\)"):
        attach_processors(model)
    model = dit(2)
    for block in model.transformer_blocks:
        block.attn1.set_processor(AttnProcessor())
    with pytest.raises(UserError, match="AttnProcessor2_0 instead"), capture(model):
        pass


def test_processors_may_leave_in_the_middle_of_a_forward():
    model = dit(2)
    attached = attach_processors(model)
    run(model)
    model.transformer_blocks[1].register_forward_hook(lambda *_: attached.detach())
    run(model)
    assert not any(isinstance(getattr(x, "processor", None), SHDAttnProcessor) for x in model.modules())


def test_processors_are_attached_once():
    """A second time was a TypeError of Python about its classes."""
    model = small_families.diffusers_dit()
    attached = attach_processors(model)
    with pytest.raises(UserError, match=r"^attach_processors: DiTTransformer2DModel is recorded .*0\.attn1\); detach"):
        attach_processors(model)
    attached.detach()
    attach_processors(model).detach()


def test_a_processor_that_was_replaced_is_told_once_and_the_others_leave(caplog):
    """The layer was missing among the captures without a word, and so in the loss."""
    model = dit(2)
    attached = attach_processors(model)
    run(model)
    assert len(attached.captures) == 3
    other = AttnProcessor2_0()
    model.transformer_blocks[1].attn1.set_processor(other)
    for _ in range(2):
        run(model)
    assert list(attached.captures) == ["transformer_blocks.0.attn1", "transformer_blocks.2.attn1"]
    (line,) = [message for message in caplog.messages if "replaced" in message]
    assert line.startswith("attach_processors: transformer_blocks.1.attn1: its processor was replaced since (by Attn")
    attached.detach()
    run(model)
    assert model.transformer_blocks[1].attn1.processor is other
    assert not isinstance(model.transformer_blocks[0].attn1.processor, SHDAttnProcessor)


def test_processors_always_have_the_last_forward():
    """They stay for long, so another capture takes no forward from them."""
    model = small_families.diffusers_dit()

    def run(seed):
        x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        model(x, timestep=torch.tensor([1, 9]), class_labels=torch.tensor([0, 2]))

    attached = attach_processors(model)
    with torch.no_grad():
        run(0)
    with capture(model) as captures:
        run(1)
    layer = next(iter(captures))
    assert torch.equal(attached.captures[layer].query, captures[layer].query)
    attached.detach()


def test_attached_processors_are_not_their_captures():
    attached = attach_processors(small_families.diffusers_dit())
    with pytest.raises(UserError, match=r"found Attached; give its \.captures"):
        SHD()(attached, {})
