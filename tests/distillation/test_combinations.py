"""Losses of all kinds together: every pair, runs that stop and go on, recomputed blocks, any transformer."""

import itertools
import shutil
from pathlib import Path

import pytest
import timm
import torch
import transformers
import zoo
from runs import rows, run
from safetensors.torch import load_file
from small_steps import SMALL, batch_of

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import LOSSES, Reads
from dit_shd.models.blocks import recorded_blocks
from dit_shd.models.families.mdt import MDTv2
from dit_shd.tasks import Batch, Output, Task
from dit_shd.tasks.diffusion import Diffusion
from dit_shd.training.compilation import compile_blocks

OPTIONS = {
    "tinybert": {"heads": "mean"},
    "vitkd": {"prefix_tokens": 0},
}
NAMES = [name for name in LOSSES.names() if name not in ("kd", "nkd", "repa", "minilm")]
"""Of predictions, with a teacher of other heads."""
SAMPLE = [("feature", "shd"), ("align_to_distill", "vkd"), ("attention_output", "diffkd"), ("lift", "minilmv2")]


def loss_of(name):
    return LOSSES.build(Plugin(name, OPTIONS.get(name, {})))


def models():
    torch.manual_seed(0)
    teacher, student = MDTv2(**SMALL, num_attention_heads=4), MDTv2(**SMALL, num_attention_heads=2)
    for p in [*teacher.parameters(), *student.parameters()]:
        torch.nn.init.normal_(p, std=0.2)
    return teacher.eval(), student


def together(names, recompute=False, dtype=torch.float32):
    """Logs and the student's gradient of the second of two calls, in which layers stream."""
    teacher, student = (model.to(dtype) for model in models())
    if recompute:
        student.enable_gradient_checkpointing()
        student.train()
    torch.manual_seed(1)
    batch = batch_of(torch.randn(2, 1, 8, 8), [3, 800], [0, 1])
    distiller = Distiller(Diffusion(), student, [loss_of(name) for name in names])
    distiller.build([batch], teacher)
    for _ in range(2):
        distiller.zero_grad()
        total, logs = distiller(batch, teacher)
        total.backward()
    idle = [name for name, p in distiller.losses.named_parameters() if p.grad is None]
    assert not idle
    gradient = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
    assert bool(gradient.isfinite().all())
    return {name: logs[name] for name in names}, gradient


@pytest.mark.parametrize("name", NAMES)
def test_models_in_bfloat16_without_autocast(name):
    """Learned maps stay in float32; losses on features ended in a RuntimeError of torch."""
    (exact, gradient), (rough, rounded) = (together([name], dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    torch.testing.assert_close(rough[name].float(), exact[name], rtol=0.02, atol=0)
    assert rounded.dtype == torch.bfloat16
    assert torch.cosine_similarity(rounded.float(), gradient, dim=0) > 0.95


def check_pair(pair):
    """Each term is what it is alone, but for projectors, whose first weights depend on what is drawn before."""
    found, _ = together(pair)
    for name in pair:
        assert bool(found[name].isfinite())
        if not loss_of(name).learns:
            torch.testing.assert_close(found[name], together([name])[0][name])


@pytest.mark.parametrize("pair", SAMPLE)
def test_two_losses_together_are_each_what_it_is_alone(pair):
    check_pair(pair)


@pytest.mark.slow
@pytest.mark.parametrize("pair", [pair for pair in itertools.combinations(NAMES, 2) if pair not in SAMPLE])
def test_every_pair_of_losses_runs_together(pair):
    check_pair(pair)


def test_recomputed_blocks_give_the_same():
    """Of every loss on layers, at once."""
    names = [name for name in NAMES if loss_of(name).reads - {Reads.OUTPUT}]
    assert len(names) > 10
    (one, gradient), (other, again) = together(names), together(names, recompute=True)
    for name in names:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient, again, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_features():
    """In passes with and without recording, in turn: what is recorded is of the call."""
    results = []
    for backend in (None, "aot_eager"):
        teacher, student = models()
        distiller = Distiller(Diffusion(), student, [loss_of("feature"), loss_of("self_correlation")])
        torch.manual_seed(1)
        batches = [batch_of(torch.randn(2, 1, 8, 8), [3, 800], [0, 1]) for _ in range(3)]
        distiller.build(batches[:1], teacher)
        if backend:
            compile_blocks(student, teacher, backend=backend)
        logs = []
        for batch in batches:
            Distiller(Diffusion(), student)(batch)  # without losses
            logs.append(distiller(batch, teacher)[1])
        results.append(logs)
    for one, other in zip(*results):
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="compiled blocks do not give what attention modules"):
        Distiller(Diffusion(), student, [loss_of("attention_output")]).build(batches, teacher)
    with pytest.raises(UserError, match=r"compiled as a whole does not give its hidden; compile its blocks"):
        Distiller(Diffusion(), torch.compile(models()[1]), [loss_of("self_correlation")])(batches[0], teacher)


def test_a_run_with_compiled_blocks_refuses_what_they_do_not_give(values):
    with pytest.raises(UserError, match=r"losses\.0: reads outputs of attention modules"):
        run({**values, "losses": [{"name": "attention_output"}], "compile": True})
    assert not Path(values["run"]).exists()


PROJECTING = [{"name": "feature"}, {"name": "vkd"}, {"name": "align_to_distill"}, {"name": "shd", "weight": 0.5}]


def test_projectors_are_trained_kept_and_resumed_and_never_exported(values, tmp_path):
    """A run of four steps is one of two that goes on; another list of losses is refused with the reason."""
    values = {**values, "losses": PROJECTING, "checkpoint_every": 1}
    run(values, run=str(tmp_path / "whole"))
    run(values, run=str(tmp_path / "parts"), steps=2)
    states = [
        load_file(tmp_path / "whole" / "checkpoints" / f"step_0000000{i}" / "distiller.safetensors") for i in (3, 4)
    ]
    projectors = [name for name in states[0] if name.startswith("losses.")]
    assert {name.split(".")[1] for name in projectors} == {"0", "1", "2"}
    assert all(not torch.equal(states[0][name], states[1][name]) for name in projectors)
    shutil.copytree(tmp_path / "parts", tmp_path / "other")
    run(values, run=str(tmp_path / "parts"))
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    exported = load_file(tmp_path / "whole" / "student" / "diffusion_pytorch_model.safetensors")
    assert not [name for name in exported if "projector" in name or "align" in name or name.startswith("losses")]
    for changed in (PROJECTING[1:], [*PROJECTING, {"name": "output"}], [{"name": "feature", "projector": "mlp"}]):
        with pytest.raises(UserError, match="losses") as error:
            run({**values, "losses": changed}, run=str(tmp_path / "other"))
        assert "\n" not in str(error.value)


class Asks(Task):
    """Runs any model by a function, on inputs that do not change."""

    def __init__(self, run):
        self.run = run

    def check(self, role, model): ...

    def draw(self, draws): ...

    def example(self, model, images, device): ...

    def losses(self, output, batch):
        return {}

    def predict(self, model, batch):
        return Output(self.run(model))


JOINT = ["SD3Transformer2DModel", "FluxTransformer2DModel", "CogVideoXTransformer3DModel"]
PLAIN = ["DiTTransformer2DModel", "PixArtTransformer2DModel"]


@pytest.mark.parametrize("name", [name for name in JOINT + PLAIN if name in zoo.ENTRIES])
def test_features_of_any_transformer_of_diffusers(name):
    """Block outputs that are tuples give the image's tokens; attention modules give theirs."""
    torch.manual_seed(0)
    teacher, student = zoo.build(name).eval(), zoo.build(name)
    batch, task = Batch("plain", 0, torch.arange(2)), Asks(lambda model: zoo.forward(model, zoo.draw(name)))
    losses = [loss_of(loss) for loss in ("feature", "self_correlation", "attention_output")]
    distiller = Distiller(task, student, losses)
    distiller.build([batch], teacher)
    for _ in range(2):
        total, logs = distiller(batch, teacher)
        total.backward()
    assert all(bool(logs[loss].isfinite()) for loss in ("feature", "self_correlation", "attention_output"))
    assert any(bool(p.grad.any()) for p in student.parameters() if p.grad is not None)
    if name in JOINT:
        given = {}
        with torch.no_grad(), recorded_blocks(student, given.__setitem__):
            task.predict(student, batch)
        block = student.transformer_blocks[0]
        seen = []
        block.register_forward_pre_hook(
            lambda _m, _a, keywords: seen.append(keywords["hidden_states"]), with_kwargs=True
        )
        task.predict(student, batch)
        assert given["transformer_blocks.0"].shape == seen[0].shape


def timm_model(heads, width):
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=width, depth=2, num_heads=heads, num_classes=3
    )


def transformers_model(heads, width):
    config = transformers.ViTConfig(
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        image_size=32,
        patch_size=8,
        attn_implementation="sdpa",
    )
    return transformers.ViTModel(config, add_pooling_layer=False)


@pytest.mark.parametrize("build", [timm_model, transformers_model])
def test_features_and_attention_of_timm_and_transformers(build):
    """Of other heads and widths; each loss gives a gradient to the student."""
    torch.manual_seed(0)
    teacher, student = build(4, 32).eval(), build(2, 16)
    images = torch.randn(2, 3, 32, 32)

    def ask(model):
        output = model(images)
        return output if isinstance(output, torch.Tensor) else output.last_hidden_state

    batch, task = Batch("plain", 0, torch.arange(2)), Asks(ask)
    for name in ("feature", "vkd", "self_correlation", "attention_output", "minilmv2", "head_mean", "align_to_distill"):
        distiller = Distiller(task, student, [loss_of(name)])
        distiller.build([batch], teacher)
        for _ in range(2):
            student.zero_grad()
            total, _ = distiller(batch, teacher)
            total.backward()
        assert any(p.grad is not None and bool(p.grad.any()) for p in student.parameters()), name
