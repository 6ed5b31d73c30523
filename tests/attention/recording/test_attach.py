"""The capture in other people's training: blocks of joint maps, choice of layers, compile, recomputation, autocast."""

import functools
import gc

import oracle
import pytest
import torch
import zoo
from clients.patterns import E, Layer
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from torch.utils.checkpoint import checkpoint

from dit_shd import SHD, SHDAttnProcessor, attach_processors, capture, squeeze
from dit_shd.core.errors import UserError
from dit_shd.models.families.dit import DiT


def dit(heads: int, layers: int = 3) -> DiTTransformer2DModel:
    torch.manual_seed(heads)
    return DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=8, in_channels=4, num_layers=layers, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10,
    ).eval()  # fmt: skip


def run(model):
    r = torch.Generator().manual_seed(0)
    x, t, y = torch.randn(2, 4, 8, 8, generator=r), torch.tensor([1, 900]), torch.tensor([1, 2])
    return model(x, timestep=t, class_labels=y, return_dict=False)[0]


def step(teacher, student, called=None):
    """Loss, and the gradient of one query projection, of a step of somebody's training loop."""
    called = student if called is None else called
    with capture(teacher) as t, capture(called) as s:
        with torch.no_grad():
            run(teacher)
        out = run(called)
    loss = SHD()(t, s) + 0.1 * out.square().mean()
    student.zero_grad()
    loss.backward()
    return loss.detach(), student.transformer_blocks[0].attn1.to_q.weight.grad.clone()


def compiled(model, counter):
    return torch.compile(model, fullgraph=True, backend=counter)


def compiled_in_place(model, counter):
    model.compile(fullgraph=True, backend=counter)
    return model


def compiled_block_by_block(model, counter):
    for block in model.transformer_blocks:
        block.compile(fullgraph=True, backend=counter)
    return model


@pytest.mark.parametrize("how", [compiled, compiled_in_place, compiled_block_by_block])
def test_compiled_models_are_captured_without_a_break_or_a_recompilation(how):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    teacher, student = dit(4), dit(2)
    want = step(teacher, student)
    counter = CompileCounterWithBackend("aot_eager")
    model = how(student, counter)
    torch.testing.assert_close(step(teacher, student, model), want)
    frames = counter.frame_count
    for _ in range(3):
        torch.testing.assert_close(step(teacher, student, model), want)
    assert counter.frame_count == frames
    torch._dynamo.reset()


def test_a_compiled_model_runs_eagerly_once_to_find_its_projections():
    """Also one that is compiled in place, with its hooks."""
    torch._dynamo.reset()
    teacher, student = dit(4), dit(2)
    want = step(teacher, dit(2))
    compiled = torch.compile(student, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(step(teacher, student, compiled), want)
    student = dit(2)
    student.compile(fullgraph=True, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(step(teacher, student), want)
    torch._dynamo.reset()


def test_recomputed_blocks_give_the_same_gradient_and_nothing_is_captured_in_the_backward():
    teacher, student = dit(4), dit(2)
    want = step(teacher, student)
    student.enable_gradient_checkpointing()
    student.train()
    for module in student.modules():  # label dropout is drawn in training
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    torch.testing.assert_close(step(teacher, student), want)
    with capture(student) as s:
        out = run(student)
        queries = [c.query for c in s.values()]
        (out.square().mean() + SHD()({k: c.detach() for k, c in s.items()}, s)).backward()
        assert all(c.query is q for c, q in zip(s.values(), queries))


def recorded_of(model, x, **options):
    with capture(model, **options) as captures:
        model(x)
    return captures


class Frozen(nn.Module):
    """Its first part, or all of it, runs without gradients."""

    def __init__(self, every=False):
        super().__init__()
        self.text, self.dit, self.every = Layer(), Layer(), every

    def forward(self, x):
        with torch.no_grad():
            x = self.text(x)
        with torch.set_grad_enabled(not self.every):
            return self.dit(x)


def test_a_part_without_gradients_inside_of_a_forward_that_has_them_is_refused_with_what_to_do():
    """It spoke of reentrant checkpointing alone."""
    x = torch.randn(2, 5, E)
    with pytest.raises(UserError, match=r"text ran without a graph .*\.requires_grad_\(False\) .*layers=\["):
        recorded_of(Frozen(), x)
    assert list(recorded_of(Frozen().dit, x)) == ["Layer"]
    assert list(recorded_of(Frozen(), x, layers=["dit"])) == ["dit"]
    frozen = Frozen()
    frozen.text.requires_grad_(False)
    assert list(recorded_of(frozen, x)) == ["text", "dit"]
    with pytest.raises(UserError, match=r"A teacher, .*: run it under torch\.no_grad\(\)"):
        recorded_of(Frozen(every=True), x)
    with torch.no_grad():
        assert len(recorded_of(Frozen(every=True), x)) == 2


def test_reentrant_recomputation_is_refused():
    model = dit(2)
    model.enable_gradient_checkpointing(functools.partial(checkpoint, use_reentrant=True))
    model.train()
    with pytest.raises(UserError, match="use_reentrant=False"), capture(model):
        pass
    model.enable_gradient_checkpointing(lambda f, *args: checkpoint(f, *args, use_reentrant=True))
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    with pytest.raises(UserError, match=r"transformer_blocks\.0\.attn1 ran without a graph"), capture(model):
        model(x, timestep=torch.tensor([1, 2]), class_labels=torch.tensor([1, 2]))


def test_autocast_gives_the_loss_of_full_precision_to_bfloat16():
    teacher, student = dit(4), dit(2)
    want, gradient = step(teacher, student)
    with torch.autocast("cpu", torch.bfloat16):
        loss, found = step(teacher, student)
    torch.testing.assert_close(loss.float(), want, rtol=0.05, atol=0.0)
    assert torch.cosine_similarity(found.flatten(), gradient.flatten(), dim=0) > 0.99


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        (0, [0]),
        ([0, -1], [0, 2]),
        ("transformer_blocks.1.*", [1]),
        (["*.2.attn1", 1], [1, 2]),
    ],
)
def test_layers_are_chosen_by_depth_or_pattern(layers, found):
    model = dit(2)
    with torch.no_grad(), capture(model, layers) as captures:
        run(model)
    assert list(captures) == [f"transformer_blocks.{i}.attn1" for i in found]


def test_cross_attention_is_captured_when_it_is_named():
    model = zoo.build("PixArtTransformer2DModel")
    with torch.no_grad(), capture(model, "*.attn2") as captures:
        zoo.forward(model, zoo.draw("PixArtTransformer2DModel"))
    assert [c.shape[2:] for c in captures.values()] == [(16, 6)] * 2


@pytest.mark.parametrize("name", ["SD3Transformer2DModel", "FluxTransformer2DModel", "CogVideoXTransformer3DModel"])
def test_a_block_of_a_joint_map_is_the_map_over_its_keys(name):
    """Renormalised, whatever the order of text and image; the joint map by query type is the same rows."""
    model, inputs = zoo.build(name), zoo.draw(name)
    found = {}
    with torch.no_grad():
        for block in ("joint", "image", "image-text", "text-image"):
            with capture(model, block=block) as found[block]:
                zoo.forward(model, inputs)
    for layer, image in found["image"].items():
        n, text = image.shape[2], found["image-text"][layer].shape[3]
        if layer in found["text-image"]:  # SD3's last block does not use its text rows
            assert found["text-image"][layer].shape[2:] == (text, n)
        joint = found["joint"][layer]
        maps = joint.map()
        if joint.shape[2] == n + text:  # one projection for both: the map is whole
            first = 0 if order(model, layer) == "image first" else text
            maps = maps[:, :, first : first + n]
        keys = maps[..., :n] if order(model, layer) == "image first" else maps[..., text:]
        torch.testing.assert_close(image.map(), keys / keys.sum(-1, keepdim=True))
        both = oracle.maps(image.query, torch.cat([image.key, found["image-text"][layer].key], 2), image.scale)
        torch.testing.assert_close(both[..., :n], keys)


def order(model, layer):
    """Where the tokens stand, by diffusers' code."""
    return "image first" if "SD3" in type(model).__name__ else "text first"


def test_a_block_needs_to_know_where_the_image_is():
    model = dit(2)
    with pytest.raises(UserError, match="no block 'image'"), torch.no_grad(), capture(model, block="image"):
        run(model)
    with pytest.raises(UserError, match="block: wanted one of"), capture(model, block="pictures"):  # type: ignore
        pass


def sd3(heads: int) -> SD3Transformer2DModel:
    """As SD3.5-medium, whose first blocks have a second attention, of the image alone."""
    torch.manual_seed(heads)
    return SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=2, num_attention_heads=heads, attention_head_dim=8,
        caption_projection_dim=8 * heads, joint_attention_dim=16, pooled_projection_dim=16, pos_embed_max_size=8,
        dual_attention_layers=(0,),
    ).eval()  # fmt: skip


def test_layers_of_the_image_alone_have_no_block_and_count_as_having_run():
    teacher, student = sd3(4), sd3(2)
    r = torch.Generator().manual_seed(0)
    x, text, pooled = (torch.randn(2, *shape, generator=r) for shape in ((4, 8, 8), (5, 16), (16,)))
    for _ in range(2):  # the forward that shows what the model is, and one that is recorded
        with capture(teacher, block="image") as t, capture(student, block="image") as s:
            with torch.no_grad():
                teacher(x, text, pooled, torch.tensor([500.0]))
            student(x, text, pooled, torch.tensor([500.0]))
        assert list(s) == ["transformer_blocks.0.attn", "transformer_blocks.1.attn"] and not s.skipped
        assert SHD()(t, s) > 0


def test_where_the_image_is_may_be_told():
    name = "ErnieImageTransformer2DModel"
    if name not in zoo.classes():
        pytest.skip(f"this diffusers has no {name}")
    model, inputs = zoo.build(name), zoo.draw(name)
    with torch.no_grad(), capture(model, block="image", image=slice(0, 16)) as captures:
        zoo.forward(model, inputs)
    assert {c.shape[2:] for c in captures.values()} == {(16, 16)}
    with pytest.raises(UserError, match="a run at one end"), capture(model, block="image", image=slice(2, 16)):
        zoo.forward(model, inputs)


@pytest.mark.parametrize("image", [slice(0, 10), slice(5, None)])
def test_a_place_of_the_image_other_than_the_models_is_refused(image):
    """Rows of the image had been given the text's W^O."""
    r = torch.Generator().manual_seed(0)
    x, text, pooled = (torch.randn(2, *shape, generator=r) for shape in ((4, 8, 8), (5, 16), (16,)))
    model = sd3(2)
    with torch.no_grad(), capture(model, image=slice(None, 16)) as captures:
        model(x, text, pooled, torch.tensor([500.0]))
    assert captures["transformer_blocks.0.attn"].shape[2:] == (16, 21)
    says = "the model says that its image is tokens 0 to 15 of 21"
    with pytest.raises(UserError, match=says), torch.no_grad(), capture(model, image=image):
        model(x, text, pooled, torch.tensor([500.0]))


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


def test_a_layer_that_ran_another_way_is_named():
    """Its code reaches the function, but this time it did not."""
    model = dit(2)
    attention = model.transformer_blocks[1].attn1
    processor = type("Fancy", (type(attention.processor),), {"__call__": lambda self, attn, x, *a, **k: x})()
    with capture(model):
        attention.processor = processor
        with pytest.raises(UserError, match=r"blocks\.1\.attn1: ran without calling"):
            run(model)


def test_captures_inside_captures_and_failures_leave_no_trace():
    model = dit(2)
    types = [type(m) for m in model.modules()]
    with torch.no_grad(), capture(model) as outer:
        with capture(model, [0]) as inner:
            run(model)
        assert (len(outer), len(inner)) == (3, 1)
        assert outer["transformer_blocks.0.attn1"].key is inner["transformer_blocks.0.attn1"].key
        with pytest.raises(RuntimeError):  # the wrong number of channels: the forward fails
            model(torch.randn(1, 3, 8, 8), timestep=torch.tensor([1]), class_labels=torch.tensor([1]))
        assert len(outer) == 0
        run(model)
        assert len(outer) == 3
    assert [type(m) for m in model.modules()] == types
    assert not any("_dit_shd" in key for m in model.modules() for key in vars(m))
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_unequal_depths_and_families_map_as_long_as_tokens_agree():
    teacher, student = dit(4, layers=3), zoo.build("PixArtTransformer2DModel")
    inputs = zoo.draw("PixArtTransformer2DModel")
    with capture(teacher) as t, capture(student) as s:
        run(teacher)
        zoo.forward(student, inputs)
    assert SHD(layers="proportional")(t, s) > 0
    pairs = {"transformer_blocks.0.attn1": "transformer_blocks.2.attn1"}
    assert SHD(layers=pairs)(t, s) > 0
    other = zoo.build("SD3Transformer2DModel")
    with capture(other) as o:
        zoo.forward(other, zoo.draw("SD3Transformer2DModel"))
    with pytest.raises(UserError, match="16 query and 22 key tokens"):
        SHD(layers="proportional")(t, o)
    with pytest.raises(UserError, match="student's captures are empty"):
        SHD()(t, {})


@pytest.mark.two_processes("script")
def test_two_processes_under_accelerate_equal_one(by_two):
    """DDP by torchrun on gloo, three steps of half batches each."""
    (world, one), (worlds, two) = (torch.load(by_two / f"{name}.pt", weights_only=True) for name in ("one", "two"))
    assert (world, worlds) == (1, 2)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


class Words(torch.nn.Module):
    """Text before the patches of a picture, by one projection; its tokens are given as numbers, or in a mapping."""

    def __init__(self):
        super().__init__()
        self.words, self.patch = torch.nn.Embedding(9, 16), torch.nn.Conv2d(1, 16, 2, 2)
        self.qkv, self.out = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16)

    def forward(self, latents, tokens):
        tokens = tokens["numbers"] if isinstance(tokens, dict) else tokens
        x = torch.cat([self.words(tokens), self.patch(latents).flatten(2).transpose(1, 2)], dim=1)
        q, k, v = (y.unflatten(2, (2, 8)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return (x + self.out(mixed))[:, tokens.shape[1] :]


@pytest.mark.parametrize("known", [True, False])
def test_the_block_of_captions_of_other_lengths(known):
    """By the lengths of what the model is given; where those are hidden, it is an error and not the whole map."""
    model, x = Words(), torch.randn(2, 1, 8, 8)
    with torch.no_grad(), capture(model) as captures:
        for length in (5, 5, 3):
            tokens = torch.randint(9, (2, length))
            model(x, tokens if known else {"numbers": tokens})
            (layer,) = captures.values()
            assert layer.shape[2:] == (16 + length, 16 + length)
            if known or length == 5:
                assert layer.over_image().shape[2:] == (16, 16)
                torch.testing.assert_close(layer.over_image().query, layer.query[:, :, length:])
            else:
                with pytest.raises(UserError, match=r"where the image stands among 19 tokens .* is not known"):
                    layer.over_image()


def test_captures_without_projections_have_no_w_o():
    """It was that of the first expert, of a model that is asked for its maps alone since it has several."""
    r = torch.Generator().manual_seed(0)
    x, text, pooled = (torch.randn(2, *shape, generator=r) for shape in ((4, 8, 8), (5, 16), (16,)))
    joint, ours = sd3(2), DiT(sample_size=8, in_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=8)
    for model, call in (
        (ours, lambda model: model(x, torch.tensor([1, 2]), class_labels=torch.tensor([1, 2]))),
        (dit(2), run),
        (joint, lambda model: model(x, text, pooled, torch.tensor([500.0]))),
    ):
        for wanted in (False, False, True, False):  # by the forward that shows what the model is, and by others
            with torch.no_grad(), capture(model, projections=wanted) as captures:
                call(model)
            assert captures and {each.out is not None for each in captures.values()} == {wanted}
            reasons = {each.why_no_out for each in captures.values()}
            assert reasons == {"" if wanted else "projections=False left it out"}
            if not wanted:
                with pytest.raises(ValueError, match=r"output projection by head .*: projections=False left it out"):
                    squeeze(next(iter(captures.values())), 1)


def test_what_a_step_has_captured_is_freed_with_its_last_user():
    """Circles of references had kept it until Python's collector ran, which in 40 steps of a training it did not."""
    teacher, student, shd = dit(2), dit(1), SHD()

    def held():
        return sum(x.untyped_storage().nbytes() for x in gc.get_objects() if type(x) in (torch.Tensor, nn.Parameter))

    def step_on():
        with capture(teacher) as t, capture(student) as s:
            with torch.no_grad():
                run(teacher)
            run(student)
        shd(t, s).backward()

    step_on()
    gc.collect()
    gc.disable()
    try:
        before = held()
        for _ in range(2):
            step_on()
        assert held() == before
        with attach_processors(student) as captures:
            run(student)
            assert len(captures) == 3
        del captures
        with capture(student, sink=lambda name, capture: None):
            run(student)
        assert held() == before
    finally:
        gc.enable()


def test_processors_may_leave_in_the_middle_of_a_forward():
    model = dit(2)
    attached = attach_processors(model)
    run(model)
    model.transformer_blocks[1].register_forward_hook(lambda *_: attached.detach())
    run(model)
    assert not any(isinstance(getattr(x, "processor", None), SHDAttnProcessor) for x in model.modules())
