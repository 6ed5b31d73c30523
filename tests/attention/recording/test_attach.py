"""The capture in other people's training: choice of layers, compile, recomputation, autocast, and what it frees."""

import functools
import gc

import pytest
import torch
import zoo
from clients.layers import E, Layer
from small_dits import dit, run, sd3
from torch import nn
from torch.utils.checkpoint import checkpoint

from dit_shd import SHD, attach_processors, capture, squeeze
from dit_shd.core.errors import UserError
from dit_shd.models.families.dit import DiT


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
