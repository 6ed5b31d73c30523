"""HiDream: pads images that are not square, routes tokens to experts, gives each block a text of its own."""

import re
from dataclasses import replace

import pytest
import torch
from tiny_pipelines import KINDS
from torch.utils.flop_counter import FlopCounterMode
from widening import random

from dit_shd import capture
from dit_shd.cli.commands import pipeline as pipeline_command
from dit_shd.cli.program import main
from dit_shd.core.errors import UserError
from dit_shd.data.pipeline_record import PipelineRecord
from dit_shd.diffusion.adapters import adapter_of_model
from dit_shd.distillation.initialisation import depth
from dit_shd.distillation.kept import KeptPlan
from dit_shd.models.students import smaller
from dit_shd.profiling.meta import ModelSpec
from dit_shd.tasks.text_to_image import TextToImage


def model(**changes):
    torch.manual_seed(0)
    transformer = KINDS["hidream"]().transformer
    sizes = {key: value for key, value in transformer.config.items() if not key.startswith("_")}
    return random(type(transformer)(**{**sizes, **changes}), 0)


def batch_of(built, height=8, width=6, tokens=5, device="cpu"):
    task = TextToImage(text_tokens=tokens, side=8)
    (batch,) = task.example(built, 2, torch.device(device))
    return task, batch if device == "meta" else of_size(batch, height, width)


def of_size(batch, height, width):
    x = torch.randn(len(batch.t), 4, height, width, generator=torch.Generator().manual_seed(1))
    return replace(batch, x_0=x, noise=x, x_t=x)


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (8, 6)])
def test_in_training_it_predicts_as_it_does_when_it_is_drawn_with(size):
    """In training mode it gives patches; of 4 x 4 latents they have the shape of latents."""
    built = model()
    task, batch = batch_of(built, *size)
    with torch.no_grad():
        outputs = [task.predict(built.train(mode), batch).prediction for mode in (True, False)]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    task.predict(built.train(), batch).prediction.square().sum().backward()
    experts = [p for name, p in built.named_parameters() if ".experts." in name and "w2" in name]
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in experts)


def test_experts_without_gradients_are_refused():
    task, batch = batch_of(built := model(force_inference_output=True))
    with torch.no_grad():
        task.predict(built.train(), batch)
    with pytest.raises(UserError, match=r"gives its experts no gradients; .*force_inference_output=false"):
        task.predict(built, batch)


def test_padding_of_an_image_weighs_nothing():
    """Its keys are zeros in every layer, and its rows are those that weigh nothing."""
    built = model().eval()
    task, batch = batch_of(built, 8, 6)
    with capture(built) as captures, torch.no_grad():
        task.predict(built, batch)
        rows = {name: layer.key.abs().amax((0, 1, 3)) for name, layer in captures.items()}
    assert len(rows) >= 4
    for keys in rows.values():
        weight = batch.row_weight(len(keys))
        assert torch.equal(weight[0] == 0, keys == 0)
        assert weight.sum(1).tolist() == pytest.approx([len(keys)] * 2)
    square = of_size(batch, 8, 8)
    assert square.row_weight(16 + 15) is None and batch.row_weight(15) is None
    with pytest.raises(UserError, match="wanted latents of at most the 48 tokens of max_resolution, or square ones"):
        task.predict(built, of_size(batch, 24, 10))


@pytest.mark.parametrize("training", [True, False])
def test_it_is_counted_without_memory(training):
    """As many operations as a model that runs, whose tokens go where they will."""
    built = model().train(training)
    counts = []
    for each, device in ((built, "cpu"), (ModelSpec.of(built).skeleton().train(training), "meta")):
        task, batch = batch_of(each, 8, 8, device=device)
        with FlopCounterMode(display=False) as counter:
            output = task.predict(each, batch).prediction
        assert output.shape == (2, 4, 8, 8)
        counts.append(counter.get_total_flops())
    attention = 4 * 2 * 31**2 * 32 * 2 * 2  # blocks, images, two products: fused, torch counts it from 2.15 on
    assert counts[1] - counts[0] in (0, attention) and counts[0] > attention


def test_a_student_s_blocks_read_the_text_of_their_sources():
    teacher = model(num_layers=3, num_single_layers=2, llama_layers=[0, 1, 0, 1, 1])
    sizes = smaller(dict(teacher.config), {"num_layers": 2, "num_single_layers": 1})
    assert sizes["llama_layers"] == [1, 0, 1]
    student = type(teacher).from_config(sizes)
    layers = depth.pairs(student, teacher, None)
    assert {k: v for k, v in layers.items() if "caption" in k} == {
        f"caption_projection.{i}": f"caption_projection.{j}" for i, j in enumerate((1, 2, 4, 5))
    }
    depth.copy(student, teacher, layers)
    old, new = teacher.state_dict(), student.state_dict()
    assert torch.equal(new["caption_projection.2.linear.weight"], old["caption_projection.4.linear.weight"])
    widths = [adapter_of_model(each).text_widths(each.config) for each in (student, teacher)]
    assert widths[0] == widths[1]
    other = type(teacher).from_config({**sizes, "llama_layers": [1, 1, 1]})
    with pytest.raises(UserError, match=r"student.llama_layers: wanted \[1, 0, 1\], .* found \[1, 1, 1\]; set student"):
        depth.pairs(other, teacher, None)


def test_a_plan_of_kept_blocks_keeps_their_texts():
    teacher = model(num_layers=3, num_single_layers=2, llama_layers=[0, 1, 0, 1, 0])
    names = {"double_stream_blocks.0": "double_stream_blocks.0", "double_stream_blocks.1": "double_stream_blocks.2"}
    plan = KeptPlan(names, names, dict.fromkeys(names, 0.0))
    student = depth.student_of(teacher, plan)
    assert list(student.config.llama_layers) == [0, 0, 1, 0]
    old, new = teacher.state_dict(), student.state_dict()
    assert torch.equal(new["caption_projection.1.linear.weight"], old["caption_projection.2.linear.weight"])


def test_a_picture_that_is_padded_is_not_inspected():
    built = model().eval()
    adapter = adapter_of_model(built)
    of = {"hidden_states": torch.zeros(1, 4, 8, 8)}
    assert adapter.image_tokens(built, "double_stream_blocks.0.block.attn1", of) == range(16)
    with pytest.raises(UserError, match="wanted a square one"):
        adapter.image_tokens(built, "double_stream_blocks.0.block.attn1", {"hidden_states": torch.zeros(1, 4, 8, 4)})


def test_more_tokens_than_one_of_its_encoders_takes_are_refused():
    """Each of its tokens has the embeddings of both."""
    t5, llama, pooled = torch.zeros(1, 5, 32), torch.zeros(2, 1, 6, 16), torch.zeros(1, 24)
    with pytest.raises(UserError, match="text_tokens: wanted as many as both T5 and Llama take, found 5 and 6"):
        adapter_of_model(model()).text([t5, None, llama, None, pooled, None])


@torch.no_grad()
def test_the_call_that_is_printed_draws_the_data_s_size(tmp_path, capsys, monkeypatch):
    """A pipeline that is opened anew scales every size to its own area."""
    record = PipelineRecord("", "HiDreamImagePipeline", "HiDreamImageTransformer2DModel", "", {}, size=(24, 16))
    monkeypatch.setattr(pipeline_command, "assemble", lambda *_: (KINDS["hidream"](), record))
    monkeypatch.setattr(pipeline_command, "write_pipeline", lambda made, _, run, out: made.save_pretrained(out))
    assert main(["pipeline", "asset:digits_teacher", str(tmp_path / "made")]) == 0
    area, size = re.search(
        r"pipeline\.default_sample_size = ([\d.]+); pipeline\(prompt, (.*)\)$", capsys.readouterr().out.strip()
    ).groups()
    assert size == "height=24, width=16"
    anew = KINDS["hidream"]()
    anew.default_sample_size = float(area)
    anew.transformer.eval()
    options = {"num_inference_steps": 1, "output_type": "np"}
    assert anew("a nine", height=24, width=16, **options).images[0].shape[:2] == (24, 16)
