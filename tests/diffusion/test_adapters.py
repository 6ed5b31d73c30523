"""Adapters beside the pipelines and the public training scripts that they stand for."""

import math

import numpy as np
import pytest
import torch
from pipeline_oracle import PROMPTS, asked_by_the_pipeline, known_of, public_loss, sides, unpacked
from tiny_pipelines import HALF, KINDS
from tiny_text_encoders import tokenizer

from dit_shd.core import rng
from dit_shd.core.errors import UserError
from dit_shd.core.rng import Draws
from dit_shd.data.pipeline_record import PipelineRecord
from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.adapters import ADAPTERS, Adapter, adapter_of, adapter_of_model, by_class
from dit_shd.diffusion.flow import TimestepDensity
from dit_shd.diffusion.guidance import Guidance
from dit_shd.diffusion.pipelines import Prompts
from dit_shd.diffusion.prompt_generation import call_arguments, draw
from dit_shd.diffusion.text_process import process_of

BY_THE_SCHEDULER = "sd3", "aura_flow", "wan", "hidream", "prx"
"""Pipelines that leave the noise levels to their scheduler, which divides from its first (shifted) one to its last."""
MASKED = "hunyuan_image", "prx"
"""Of those that are compared prompt by prompt: the classes that are told which tokens are padding."""


def without_guidance(kind, pipeline, adapter):
    """The scale of a call without classifier-free guidance, where the call has one."""
    adapter.guide(pipeline, 1.0)
    return {"qwen_image": None, "hunyuan_image": None, "flux": 2.5, "z_image": 0.0}.get(kind, 1.0)


@torch.no_grad()
def test_times_are_not_rounded_in_bfloat16(kind, pipeline, adapter):
    """Eight bits of a time are 0.2 to 0.4 percent of it."""
    if kind in (
        "hunyuan_dit",
        "hunyuan_image",
        "flux",
        "chroma",
        "longcat_image",
        "ovis_image",
        "flux2",
        "flux2_dev",
        "qwen_image",
    ):
        pytest.skip("its transformer or its pipeline rounds them itself")
    times = torch.tensor([0.7123456])
    x = torch.zeros(1, adapter.channels(pipeline.transformer.config), 8, 8, dtype=torch.bfloat16)
    given = adapter.arguments(pipeline.transformer, x, times, adapter.encode(pipeline, PROMPTS[:1]).to(x), None)
    assert next(value for key, value in given.items() if key in ("timestep", "timesteps", "t")).dtype == torch.float32


@torch.no_grad()
def test_a_model_through_its_adapter_predicts_what_the_pipeline_s_call_predicts(kind, pipeline, adapter):
    guidance = without_guidance(kind, pipeline, adapter)
    text = adapter.encode(pipeline, PROMPTS)
    record = asked_by_the_pipeline(pipeline, adapter, guidance)
    assert len(record) == 3
    for sample, t, output in record:
        x = unpacked(sample, pipeline, adapter)
        time = t if adapter.process == "ddpm" else t / 1000
        predicted = adapter.predict(pipeline.transformer, x, time.expand(2), text, guidance)
        assert x.shape[-2:] == sides(pipeline, adapter)
        assert predicted.std() > 0.01
        torch.testing.assert_close(
            predicted[:, : x.shape[1]], unpacked(output, pipeline, adapter), rtol=1e-4, atol=5e-5
        )


@torch.no_grad()
def test_the_largest_latents_and_texts_are_those_that_the_transformer_has_positions_for(kind, pipeline, adapter):
    model, settings = pipeline.transformer, pipeline.transformer.config
    step, side, tokens = adapter.multiple(settings), adapter.most_side(settings), adapter.most_text(settings)

    def asked(rows, columns, text):
        condition = TextCondition.of(torch.zeros(1, text, adapter.text_widths(settings)[0]))
        condition = condition if kind != "sd3" else adapter.encode(pipeline, PROMPTS[:1])
        x = torch.zeros(1, adapter.channels(settings), rows, columns)
        return adapter.predict(model, x, torch.tensor([0.5]), condition).shape[2:] == (rows, columns)

    if side is None:
        assert kind not in ("sd3", "aura_flow", "lumina2", "z_image")
        return
    assert asked(step, side, 3) and asked(side, step, 3)
    with pytest.raises(
        (IndexError, ValueError, RuntimeError)
    ):  # AuraFlow takes some positions twice where one side fits
        asked(side + step, side + step if kind == "aura_flow" else step, 3)
    if kind in ("lumina2", "z_image"):
        assert asked(side, step, tokens)
        with pytest.raises((IndexError, RuntimeError)):
            asked(step, step, tokens + 1)


@torch.no_grad()
def test_a_prompt_beside_a_longer_one_is_asked_as_it_is_alone(kind, pipeline, adapter):
    model = pipeline.transformer
    x = torch.randn(1, adapter.channels(model.config), *sides(pipeline, adapter), generator=torch.manual_seed(0))
    time = torch.tensor([500.0 if adapter.process == "ddpm" else 0.5])
    alone, beside = (adapter.encode(pipeline, prompts) for prompts in (PROMPTS[:1], PROMPTS))
    found = [
        adapter.predict(model, x.expand(len(t.mask), -1, -1, -1), time.expand(len(t.mask)), t)[0]
        for t in (alone, beside)
    ]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_guided_target_is_what_the_pipeline_s_call_is_guided_by(kind, pipeline, adapter):
    if kind in ("flux", "flux2_dev"):
        pytest.skip("distilled: its pipeline does not guide by a second run")
    text, empty = adapter.encode(pipeline, PROMPTS), adapter.encode_empty(pipeline)
    record = asked_by_the_pipeline(pipeline, adapter, **adapter.guide(pipeline, 4.0))
    sample, t, output = record[1]
    x = unpacked(sample, pipeline, adapter)
    time = (t if adapter.process == "ddpm" else t / 1000).expand(2)
    both = text, text.replaced(torch.tensor([True, True]), empty)
    c, u = (adapter.predict(pipeline.transformer, x, time, of)[:, : x.shape[1]] for of in both)
    expected = unpacked(output, pipeline, adapter)[:, : x.shape[1]]
    target = adapter.guided(Guidance(4.0).combined(c, u, time), c)
    assert (target - c).norm() > 1e-3 * c.norm()
    assert (target - expected).norm() < 1e-4 * expected.norm()


@torch.no_grad()
@pytest.mark.parametrize("kind", HALF)
def test_a_prompt_beside_a_longer_one_is_what_it_is_alone(kind, opened):
    pipeline = opened(kind)
    adapter = adapter_of_model(pipeline.transformer)
    height, width = sides(pipeline, adapter)
    x = Draws(0, 0, range(2), 2).normal("x", (adapter.channels(pipeline.transformer.config), height, width))
    t = torch.tensor([0.3, 0.8])
    text = adapter.encode(pipeline, PROMPTS)
    both = adapter.predict(pipeline.transformer, x, t, text.padded(text.tokens + 3 * (kind in MASKED)))
    for i, prompt in enumerate(PROMPTS):
        alone = adapter.predict(pipeline.transformer, x[i : i + 1], t[i : i + 1], adapter.encode(pipeline, [prompt]))
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", HALF)
def test_images_are_the_pipeline_s_own(kind, opened):
    pipeline = opened(kind)
    adapter = adapter_of_model(pipeline.transformer)
    record = PipelineRecord("", type(pipeline).__name__, type(pipeline.transformer).__name__, "", {}, size=(24, 16))
    call = call_arguments(pipeline, record, {"num_inference_steps": 2, "guidance": 3})
    drawn = draw(pipeline, PROMPTS, 0, range(2), call)
    assert drawn.shape == (2, 24, 16, 3)
    for i, prompt in enumerate(PROMPTS):
        seed = int(rng.stream(0, "sample prompt", 0, i).integers(2**62))
        options = adapter.guide(pipeline, 3.0)
        options |= {"generator": torch.Generator().manual_seed(seed), "num_inference_steps": 2, "output_type": "np"}
        options |= {"use_resolution_binning": False} if "use_resolution_binning" in known_of(pipeline) else {}
        image = pipeline(prompt, height=24, width=16, **options).images[0]
        assert np.abs(drawn[i].astype(int) - np.round(image * 255)).max() <= 1


@torch.no_grad()
def test_the_base_loss_is_the_public_script_s(kind, pipeline, adapter, tmp_path):
    text = adapter.encode(pipeline, PROMPTS)
    height, width = sides(pipeline, adapter)
    draws = Draws(0, 0, range(2), 2)
    x_0 = draws.normal("data", (adapter.channels(pipeline.transformer.config), height, width))
    noise = draws.normal("noise", x_0.shape[1:])
    scheduler = dict(pipeline.scheduler.config)
    process = process_of(adapter.process, scheduler, TimestepDensity(), "none", None, 2)
    t = process.times(torch.tensor([0.3, 0.8], dtype=torch.float64), x_0.shape)
    output = adapter.predict(pipeline.transformer, process.add_noise(x_0, noise, t), t, text)
    prediction, extra = process.prediction(output, x_0, t)
    terms = process.losses(prediction, extra, x_0, noise, process.add_noise(x_0, noise, t), t)
    expected = public_loss(kind, pipeline, x_0, noise, t, text)
    name = "noise" if adapter.process == "ddpm" else "velocity"
    torch.testing.assert_close(terms[name], expected, rtol=1e-6, atol=1e-6)
    assert ("variational" in terms) == (kind == "pixart")


def test_every_adapter_names_a_class_and_a_pipeline_of_diffusers():
    import diffusers

    adapters = by_class()
    assert len(adapters) == len(ADAPTERS.names()) >= 8
    for name, adapter in adapters.items():
        assert hasattr(diffusers, name)
        for pipeline in adapter.pipelines:
            assert hasattr(diffusers, pipeline)


def test_a_class_without_an_adapter_is_told_how_one_looks():
    with pytest.raises(UserError, match=r"HunyuanSuper: no adapter .* those of .*SD3Transformer2DModel"):
        adapter_of("HunyuanSuper")
    with pytest.raises(UserError) as error:
        adapter_of("HunyuanSuper")
    sketch = str(error.value).partition("my_package:")[2]
    scope: dict = {}
    exec("\n".join(line[4:] for line in sketch.splitlines()), scope)
    sketched = scope["HunyuanSuper"]()
    assert isinstance(sketched, Adapter)
    assert sketched.text_widths({"caption_channels": 32}) == (32, None)
    text = TextCondition.of(torch.zeros(1, 4, 32))
    x, time = torch.zeros(1, 4, 8, 8), torch.ones(1)
    assert sketched.prediction(sketched.arguments(torch.nn.Module(), x, time, text, None)["hidden_states"], x) is x


class Sketched(Adapter):
    """Of a pipeline whose call names no number of tokens."""

    text_widths = arguments = lambda *_: None


class Unnamed:
    """A pipeline whose call has no max_sequence_length, as LattePipeline's."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, prompt):
        """Draw."""


def test_a_pipeline_that_names_no_number_of_tokens_has_its_tokenizer_s():
    """`encode` with an adapter of somebody's own had ended in a KeyError."""
    pipeline = Unnamed(tokenizer(12))
    assert Sketched().limits(pipeline) == {"tokenizer": 12}
    assert Sketched().limits(Unnamed(None)) == {}
    record = PipelineRecord("somewhere", "Unnamed", "Sketch", "", {})
    assert Prompts(pipeline, Sketched(), record).too_long(["a nine", "a nine with a zero and " * 5]) == 1
    assert Prompts(Unnamed(None), Sketched(), record).too_long(["a nine"]) == 0


@pytest.mark.parametrize(("kind", "key"), [("sana", "guidance_embeds"), ("qwen_image", "use_additional_t_cond")])
def test_transformers_of_such_pipelines_are_refused(kind, key):
    made = KINDS[kind]().transformer
    settings = {name: value for name, value in made.config.items() if not name.startswith("_")}
    model, text = type(made)(**{**settings, key: True}), TextCondition.of(torch.zeros(1, 4, 32))
    with pytest.raises(UserError, match=f"with {key} is of .*: not supported"):
        ADAPTERS.find(kind)().predict(model, torch.zeros(1, 4, 8, 8), torch.ones(1), text, 4.5)


@torch.no_grad()
def test_the_shift_of_training_is_that_of_the_pipeline_s_default_steps(kind, pipeline, adapter):
    """Every noise level of its own call lies where evenly spaced ones lie after the shift that training has."""
    if adapter.process == "ddpm":
        process = process_of("ddpm", dict(pipeline.scheduler.config), TimestepDensity(), "none", None, 2)
        times = process.times(torch.arange(1000, dtype=torch.float64) / 1000, (1, 4, 8, 8))
        assert times.tolist() == list(range(1000)), "uniform over the schedule"
        return
    if kind.startswith("flux2"):
        pytest.skip("its shift depends on the number of steps: the next test")
    guidance = without_guidance(kind, pipeline, adapter)
    steps = torch.tensor([float(t) / 1000 for _, t, _ in asked_by_the_pipeline(pipeline, adapter, guidance)]).double()
    multiple = adapter.multiple(pipeline.transformer.config)
    options = dict(pipeline.scheduler.config), TimestepDensity(), "none", None, multiple, adapter.shift
    process = process_of("flow", *options)
    scheduler = pipeline.scheduler
    ends = (scheduler.sigma_max, scheduler.sigma_min) if kind in BY_THE_SCHEDULER else (1.0, 1 / 3)
    even = torch.linspace(*ends, 3, dtype=torch.float64)
    expected = process.times(even, (1, 4, *sides(pipeline, adapter)))
    if terminal := scheduler.config.get("shift_terminal"):  # a stretch of the steps so that the last is this
        expected = 1 - (1 - expected) * (1 - terminal) / (1 - expected[-1])
    torch.testing.assert_close(steps.float(), expected, rtol=2e-3, atol=2e-3)


def test_the_shift_of_flux2_is_its_pipeline_s_at_50_steps():
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    adapter = ADAPTERS.find("flux2")()
    for tokens in (256, 1024, 4096, 5000):
        dynamic = {"use_dynamic_shifting": True}
        process = process_of("flow", dynamic, TimestepDensity(), "none", None, 1, adapter.shift)
        alpha = math.exp(compute_empirical_mu(tokens, 50))
        sigma = process.times(torch.tensor([0.5], dtype=torch.float64), (1, 4, tokens, 1))
        assert float(sigma) == pytest.approx(alpha / (1 + alpha), rel=1e-6)
    static = process_of("flow", {"shift": 3.0}, TimestepDensity(), "none", None, 1, adapter.shift)
    half = torch.tensor([0.5], dtype=torch.float64)
    assert float(static.times(half, (1, 4, 1024, 1))) == pytest.approx(0.75), "of a scheduler without a dynamic shift"
