"""HunyuanImage: words in quotes by a second encoder, padding behind all of them, a guider in the pipeline."""

import json
from dataclasses import replace

import numpy as np
import pipeline_oracle
import pytest
import torch
from tiny_pipelines import KINDS, write_pipeline
from widening import random

from dit_shd import capture
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.adapters import adapter_of_model
from dit_shd.diffusion.pipelines import open_pipeline
from dit_shd.diffusion.prompt_generation import draw, sample_prompts
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import LOSSES
from dit_shd.models.blocks import recompute
from dit_shd.tasks.text_to_image import TextBatch, TextToImage

QUOTED = ['a "thin seven" and a nine', "two digits", "'zero' and 'one two' with a seven"]
LENGTHS = (3, 40, 11)
GLYPHS = (0, 7, 128)


def model(seed=0, **changes):
    transformer = KINDS["hunyuan_image"]().transformer
    sizes = {key: value for key, value in transformer.config.items() if not key.startswith("_")}
    return random(type(transformer)(**{**sizes, **changes}), seed).eval()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return open_pipeline(write_pipeline("hunyuan_image", tmp_path_factory.mktemp("p") / "pipeline"))


def batch_of(built, prompts, tokens=48):
    """Samples of a batch of three, each with its own prompt and words in quotes."""
    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn(3, 4, 6, 4, generator=generator), torch.randn(3, 128 + tokens, 32, generator=generator)
    masks = [torch.arange(n) < torch.tensor(of)[:, None] for n, of in ((128, GLYPHS), (tokens, LENGTHS))]
    mask, t, of = torch.cat(masks, 1), torch.tensor([0.2, 0.5, 0.8]), list(prompts)
    rows = adapter_of_model(built).text_rows(built.config)
    return TextBatch("plain", 0, torch.tensor(of), x[of], x[of], x[of], t[of], text[of], mask[of], text_rows=rows)


@torch.no_grad()
def test_words_in_quotes_are_those_of_the_pipeline(pipeline, monkeypatch):
    adapter = adapter_of_model(pipeline.transformer)
    monkeypatch.setattr(pipeline_oracle, "PROMPTS", QUOTED)
    text = adapter.encode(pipeline, QUOTED)
    assert [bool(row.any()) for row in text.mask[:, :128]] == [True, False, True]
    adapter.guide(pipeline, 1.0)
    for x, t, output in pipeline_oracle.asked_by_the_pipeline(pipeline, adapter):
        predicted = adapter.predict(pipeline.transformer, x, (t / 1000).expand(3), text)
        torch.testing.assert_close(predicted, output, rtol=1e-4, atol=5e-5)
    without = TextCondition(text.embeddings, text.mask & (torch.arange(text.tokens) >= 128))
    other = adapter.predict(pipeline.transformer, x, (t / 1000).expand(3), without)
    assert (other - predicted).abs().amax((1, 2, 3))[[0, 2]].min() > 1e-3
    torch.testing.assert_close(other[1], predicted[1])


def test_a_picture_is_its_prompt_s_whatever_is_drawn_beside_it(tmp_path):
    """The pipeline takes the guider for words in quotes for a whole batch if one prompt has some."""
    whole = open_pipeline(write_pipeline("hunyuan_image", tmp_path / "pipeline"))
    call = {"height": 16, "width": 8, "num_inference_steps": 3}
    both = draw(whole, QUOTED[:2], 0, range(2), call)
    for i in range(2):
        assert np.array_equal(both[i], draw(whole, QUOTED[i : i + 1], 0, range(i, i + 1), call)[0])


def test_the_guider_is_in_the_record(tmp_path):
    """Its scale is no argument of the call; samples of another one are other samples."""
    folder = write_pipeline("hunyuan_image", tmp_path / "pipeline")
    (tmp_path / "prompts.txt").write_text("a nine\n")
    call = {"height": 8, "width": 8, "num_inference_steps": 1, "guidance": 2}
    values = {"run": str(folder), "prompts": str(tmp_path / "prompts.txt"), "call": call, "count": 1}
    record = json.loads(sample_prompts(make(SampleConfig, values)).with_suffix(".json").read_text())
    assert record["guider"]["guidance_scale"] == 2 and "ocr_guider" not in record


def test_its_blocks_run_again_in_the_backward():
    """diffusers' own function for that takes no keywords, and its blocks are given some."""
    task, built = TextToImage(), model().train()
    recompute(built)
    task.example(built, 1, torch.device("cpu"))
    task.predict(built, batch_of(built, range(3))).prediction.square().sum().backward()
    assert built.transformer_blocks[0].attn.to_q.weight.grad.abs().max() > 0


@torch.no_grad()
def test_a_distilled_model_is_given_its_scale(pipeline, monkeypatch):
    adapter, built = adapter_of_model(pipeline.transformer), model(guidance_embeds=True)
    monkeypatch.setattr(pipeline, "transformer", built)
    text = adapter.encode(pipeline, pipeline_oracle.PROMPTS)
    scale = adapter.guide(pipeline, 2.5)
    monkeypatch.setattr(pipeline, "guider", None)
    for x, t, output in pipeline_oracle.asked_by_the_pipeline(pipeline, adapter, **scale):
        predicted = adapter.predict(built, x, (t / 1000).expand(2), text, 2.5)
        torch.testing.assert_close(predicted, output, rtol=1e-4, atol=5e-5)
    with pytest.raises(UserError, match=r"use_meanflow, .* wanted the one that is not distilled"):
        adapter.predict(model(use_meanflow=True), x, torch.zeros(2), text)


@pytest.mark.parametrize("glyphs", [True, False])
def test_padding_of_a_layer_is_what_the_model_hides(glyphs):
    """In its refiner, its blocks of two streams and of one; with the second encoder and without."""
    built = model() if glyphs else model(text_embed_2_dim=None)
    batch, task = batch_of(built, range(3)), TextToImage()
    task.example(built, 1, torch.device("cpu"))
    with capture(built, ["*"]) as captures, torch.no_grad():
        task.predict(built, batch)
        layers = {name: (layer.map()[:, 0] == 0).all(1) for name, layer in captures.items()}
    assert {name.partition(".")[0] for name in layers} == {
        *("context_embedder", "transformer_blocks", "single_transformer_blocks")
    }
    for name, hidden in layers.items():
        weight = batch.row_weight(hidden.shape[1])
        assert weight is not None, name
        assert torch.equal(weight == 0, hidden), name
        torch.testing.assert_close(weight.sum(1), torch.full((3,), float(hidden.shape[1])))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shd", "feature", "attention_output", "minilmv2", "vkd"])
def test_a_sample_s_term_is_its_own_whatever_prompts_are_beside_it(name):
    student, teacher, task = model(0), model(1), TextToImage()
    task.example(student, 1, torch.device("cpu"))
    distiller = Distiller(task, student, [LOSSES.build(Plugin(name, {}))], base_weight=0.0)
    distiller.build([batch_of(teacher, [0])], teacher)
    values = [distiller(batch_of(student, of), teacher)[0] for of in ([0], [1], [2], [0, 1, 2])]
    assert values[3] > 0
    torch.testing.assert_close(values[3], sum(values[:3]) / 3, rtol=1e-4, atol=1e-6)
    batch = batch_of(student, range(3))
    other = replace(batch, text=torch.where(batch.text_mask[..., None], batch.text, torch.randn(batch.text.shape)))
    torch.testing.assert_close(distiller(other, teacher)[0], values[3], rtol=1e-4, atol=1e-6)
