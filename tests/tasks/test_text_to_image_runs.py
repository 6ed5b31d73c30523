"""Runs of text to image with every kind of pipeline, resumed, in micro-batches, with half of the blocks."""

import json
from dataclasses import replace

import pytest
import torch
from encoded_text import CAPTIONS, encode
from text_to_image import values
from tiny_pipelines import HALF, KINDS, LIKE_FLUX, OTHERS, WITH_SLOW, write_pipeline

from dit_shd.core.config import make
from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import Draws
from dit_shd.data.datasets import DATASETS
from dit_shd.diffusion.pipelines import Prompts
from dit_shd.training.config import TrainConfig
from dit_shd.training.trainer import Trainer

OPTIONS = {
    "hunyuan_dit": {"size": 32},
    "chroma": {"text_tokens": 24},
    "ovis_image": {"text_tokens": 24},
    "bria": {"text_tokens": 24},
}
"""Of encoding, by kind."""
ALWAYS = ("sd3", "flux", "pixart", "lumina2")
"""Joint, packed, DDPM, and one stream: the others train whole runs in the slow tests."""


@pytest.fixture(scope="module", params=[*WITH_SLOW, *OTHERS])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def made(kind, tmp_path_factory):
    """A pipeline, and what was encoded by it."""
    folder = tmp_path_factory.mktemp(kind)
    pipeline = write_pipeline(kind, folder / "pipeline")
    return pipeline, encode(folder, pipeline, **OPTIONS.get(kind, {}))


@pytest.mark.parametrize(
    "kind",
    [x if x in ALWAYS else pytest.param(x, marks=pytest.mark.slow) for x in [*KINDS, *OTHERS]],
    indirect=True,
)
def test_three_steps_with_resume(kind, made, tmp_path):
    pipeline, latents = made
    config = make(TrainConfig, values(kind, pipeline, latents, tmp_path / "run"))
    steps = [step.metrics for step in Trainer.from_config(config).run_steps()]
    assert all({f"plain/{loss.name}" for loss in config.losses} <= metrics.keys() for metrics in steps)
    interrupted = replace(config, run=tmp_path / "two", steps=2)
    first = [step.metrics for step in Trainer.from_config(interrupted).run_steps()]
    last = [step.metrics for step in Trainer.from_config(replace(interrupted, steps=3)).run_steps()]
    assert len(first) == 2
    assert len(last) == 1
    for one, other in zip(steps, [*first, *last]):
        assert one["loss"] == other["loss"]
    if config.initialisation.weights == "teacher":
        stream = json.loads((tmp_path / "run" / "initialisation.json").read_text())["channels"]["stream"]
        assert stream == list(range(0, 2 * len(stream), 2))
    record = json.loads((tmp_path / "run" / "student" / "pipeline.json").read_text())
    assert record["pipeline"] == str(pipeline)
    embeds = json.loads((pipeline / "transformer" / "config.json").read_text()).get("guidance_embeds")
    assert record["guidance"] == (3.5 if embeds else None)
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert f"It replaces the transformer of {pipeline.name}, a " in card


@pytest.mark.slow
@pytest.mark.parametrize("lora", [0, 2])
@pytest.mark.parametrize("kind", HALF)
def test_half_of_the_blocks_in_micro_batches(kind, lora, tmp_path):
    """From whole blocks of the teacher, in halves of a batch that run again as in a whole one, and with LoRA."""
    pipeline = write_pipeline(kind, tmp_path / "pipeline")
    latents = encode(tmp_path, pipeline)
    changes = {"student": {"like": "teacher", **HALF[kind]}, "lora": {"rank": lora}}
    metrics = []
    for micro in (4, 2):
        run = values(kind, pipeline, latents, tmp_path / f"run{micro}", micro_batch_size=micro, **changes)
        run["gradient_checkpointing"] = micro == 2
        metrics.append([step.metrics for step in Trainer.from_config(make(TrainConfig, run)).run_steps()])
    for step, (whole, parts) in enumerate(zip(*metrics, strict=True)):
        for name in ("loss", "plain/output", "plain/feature", "plain/shd"):
            assert whole[name] == pytest.approx(parts[name], rel=1e-2 if step else 1e-4, abs=1e-7), name
    begun = json.loads((tmp_path / "run2" / "initialisation.json").read_text())["layers"]
    assert sum(source.endswith(".1") and "caption" not in source for source in begun.values()) == len(HALF[kind])


def test_captions_are_matched_with_their_images(kind, made):
    pipeline, latents = made
    data = DATASETS.build(Plugin("text_latents", {"path": str(latents), "verify": True}))
    assert len(data) == 3
    assert [data.caption(i) for i in range(3)] == ["a thin seven", CAPTIONS["c"], "a nine"]
    prompts = Prompts.load(str(pipeline), torch.device("cpu"), text_tokens=data.record.text_tokens)
    for i in range(3):
        alone = prompts([data.caption(i)])
        (index,) = data.batch(torch.tensor([i]).numpy(), Draws(0, 0, range(1), 1))["text"]
        torch.testing.assert_close(index[: alone.tokens][alone.mask[0]], alone.embeddings[0][alone.mask[0]])
    skipped = [json.loads(line) for line in (latents / "skipped.jsonl").read_text().splitlines()]
    assert [entry["image"] for entry in skipped] == ["b.png", "e.png"]
    assert all(entry["reason"] == "it has no caption" for entry in skipped)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flux", *LIKE_FLUX], indirect=True)
def test_half_the_blocks_of_a_teacher_learn_the_same_in_micro_batches(kind, made, tmp_path):
    """Whole blocks of the teacher's, and low-rank adapters on them."""
    changes = {"student": {"like": "teacher", "num_single_layers": 1}, "task": "text_to_image", "steps": 2}
    both = []
    for size in (4, 2):
        run = tmp_path / str(size)
        config = make(TrainConfig, values(kind, *made, run, **changes, micro_batch_size=size))
        both.append([step.metrics for step in Trainer.from_config(config).run_steps()])
        sources = json.loads((run / "initialisation.json").read_text())["layers"]
        assert sources == {
            "transformer_blocks.0": "transformer_blocks.0",
            "single_transformer_blocks.0": "single_transformer_blocks.1",
        }
    for whole, halves in zip(*both):
        for name in ("loss", *(f"plain/{loss.name}" for loss in config.losses)):
            # maps are fitted to calibration images in batches of other sizes: SHD begins at 2e-5, up to rounding
            assert whole[name] == pytest.approx(halves[name], rel=1e-4, abs=1e-7), name
    lora = {"lora": {"rank": 2}, "losses": [{"name": "output"}], "gradient_checkpointing": True}
    config = make(TrainConfig, values(kind, *made, tmp_path / "lora", **changes | lora))
    assert all(step.metrics["loss"] > 0 for step in Trainer.from_config(config).run_steps())
