"""Adapters beside the pipelines and the public training scripts that they stand for."""

import inspect
import math
import re
from pathlib import Path

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    FluxPipeline,
    QwenImagePipeline,
)
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid
from tiny_pipelines import KINDS, OTHERS, kl, write_pipeline
from tiny_text_encoders import tokenizer, vocabulary_size

from dit_shd.core import installation
from dit_shd.core.errors import UserError
from dit_shd.core.rng import Draws
from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.adapters import ADAPTERS, MAX_TOKENS, Adapter, adapter_of, by_class
from dit_shd.diffusion.flow import TimestepDensity
from dit_shd.diffusion.guidance import Guidance
from dit_shd.diffusion.pipelines import Prompts, open_pipeline, record_of
from dit_shd.diffusion.text_process import ddpm_schedule, pipeline_shift, process_of

PROMPTS = ["a thin seven", "two digits : four and seven with a zero"]
"""Of unequal length."""


BY_THE_SCHEDULER = "sd3", "aura_flow", "wan"
"""Pipelines that leave the noise levels to their scheduler, which divides from its first (shifted) one to its last."""


@pytest.fixture(scope="module", params=[*KINDS, *OTHERS])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def pipeline(kind, tmp_path_factory):
    folder = write_pipeline(kind, tmp_path_factory.mktemp("pipelines") / kind)
    made = open_pipeline(folder)
    made.transformer.eval()
    return made


@pytest.fixture
def adapter(pipeline) -> Adapter:
    return by_class()[type(pipeline.transformer).__name__]


def sides(pipeline, adapter):
    """Height and width of latents that are not square."""
    of_eight = isinstance(adapter, (ADAPTERS.find("sana"), ADAPTERS.find("wan")))
    multiple = 8 if of_eight else adapter.multiple(pipeline.transformer.config)
    return 6 * multiple, 4 * multiple


def test_prompts_are_never_left_uncleaned(kind, pipeline, monkeypatch):
    """Without beautifulsoup4 or ftfy pipelines warn, and encode the prompts as they are."""
    folder = Path(pipeline.config._name_or_path)
    monkeypatch.setattr(installation, "find_spec", lambda name: None if name in ("bs4", "ftfy") else name)
    missing = {"pixart": "packages bs4 and ftfy", "wan": "package ftfy"}.get(kind)
    if missing is None:
        open_pipeline(folder)
    else:
        with pytest.raises(UserError, match=f"cleans prompts, needs the {missing}; install with: pip install"):
            open_pipeline(folder)
    known = known_of(pipeline)
    cleans = "clean_caption" in known and known["clean_caption"].default
    assert not cleans or {"bs4", "ftfy"} <= {*by_class()[type(pipeline.transformer).__name__].cleaners}


@pytest.mark.parametrize("kind", ["hunyuan_dit"], indirect=True)
def test_lengths_that_cannot_be_chosen(pipeline):
    with pytest.raises(UserError, match="text_tokens: a HunyuanDiTPipeline has fixed numbers of tokens; leave it out"):
        Prompts.load(pipeline.config._name_or_path, torch.device("cpu"), text_tokens=8)


def test_prompts_of_every_pipeline_are_counted(pipeline):
    """Also by a processor of images and text, which would open prompts as pictures."""
    prompts = Prompts.load(pipeline.config._name_or_path, torch.device("cpu"))
    assert prompts.too_long([*PROMPTS, "", "a nine " * 600]) == 1


def test_a_prompt_that_is_said_to_fit_reaches_the_embeddings_to_its_last_word(pipeline):
    """Pipelines that put a template around prompts cut the prompt, and what is left of it may be nothing."""
    if MAX_TOKENS not in known_of(pipeline):
        pytest.skip("its numbers of tokens are fixed")
    place = pipeline.config._name_or_path
    with pytest.raises(UserError, match=r"text_tokens: wanted .* or more, found 1: a .* tokens around every") as error:
        Prompts.load(place, torch.device("cpu"), text_tokens=1)
    least = int(str(error.value).split()[2])
    prompts = Prompts.load(place, torch.device("cpu"), text_tokens=least + 4)
    longest = max(words for words in range(1, 40) if not prompts.too_long(["nine " * words]))
    assert longest >= 8
    ends = prompts([f"{'nine ' * (longest - 1)}{word}" for word in ("nine", "thin")])
    assert not torch.equal(*ends.embeddings)


def test_more_tokens_than_the_pipeline_s_call_takes_are_refused_before_training(pipeline, adapter):
    limits = {int(limit) for limit in re.findall(r"cannot be greater than (\d+)", inspect.getsource(type(pipeline)))}
    assert limits == ({adapter.most_tokens} - {None})
    if limits:
        place, tokens = pipeline.config._name_or_path, adapter.most_tokens + 1
        with pytest.raises(UserError, match=f"text_tokens: wanted {tokens - 1} or less, .* found {tokens}"):
            Prompts.load(place, torch.device("cpu"), text_tokens=tokens)


@torch.no_grad()
def test_times_are_not_rounded_in_bfloat16(kind, pipeline, adapter):
    """Eight bits of a time are 0.2 to 0.4 percent of it."""
    if kind in ("hunyuan_dit", "flux", "flux2", "flux2_dev", "qwen_image"):
        pytest.skip("its transformer or its pipeline rounds them itself")
    times = torch.tensor([0.7123456])
    x = torch.zeros(1, adapter.channels(pipeline.transformer.config), 8, 8, dtype=torch.bfloat16)
    given = adapter.arguments(pipeline.transformer, x, times, adapter.encode(pipeline, PROMPTS[:1]).to(x), None)
    assert next(value for key, value in given.items() if key in ("timestep", "t")).dtype == torch.float32


def known_of(pipeline):
    """The arguments of a pipeline's call."""
    return inspect.signature(type(pipeline).__call__).parameters


def asked_by_the_pipeline(pipeline, adapter, guidance_scale=None, **keywords):
    """Latents, timesteps and predictions that a scheduler is given."""
    record, step = [], pipeline.scheduler.step

    def recorded(output, t, sample, *args, **kwargs):
        record.append((sample.clone(), t.clone(), output.clone()))
        return step(output, t, sample, *args, **kwargs)

    factor = pipeline.vae_scale_factor_spatial if "num_frames" in known_of(pipeline) else pipeline.vae_scale_factor
    factor *= 2 if isinstance(adapter, ADAPTERS.find("flux2")) else 1  # its latents are patches of 2 x 2
    height, width = (factor * side for side in sides(pipeline, adapter))
    known = known_of(pipeline)
    keywords |= {"use_resolution_binning": False} if "use_resolution_binning" in known else {}
    keywords |= {"num_frames": 1} if "num_frames" in known else {}
    keywords |= {} if guidance_scale is None else {"guidance_scale": guidance_scale}
    if "negative_prompt" in keywords:
        keywords["negative_prompt"] = [keywords["negative_prompt"]] * len(PROMPTS)
    pipeline.scheduler.step = recorded
    try:
        generator = torch.Generator().manual_seed(0)
        options = {"num_inference_steps": 3, "output_type": "latent", "generator": generator, **keywords}
        pipeline(prompt=list(PROMPTS), height=height, width=width, **options)
    finally:
        pipeline.scheduler.step = step
    return record


def unpacked(x, pipeline, adapter):
    """Latents [b,c,y,x] of what a pipeline's scheduler holds."""
    if x.ndim == 4:
        return x
    if x.ndim == 5:
        return x[:, :, 0]
    height, width = sides(pipeline, adapter)
    if isinstance(adapter, ADAPTERS.find("flux2")):
        return x.transpose(1, 2).unflatten(2, (height, width))
    return FluxPipeline._unpack_latents(x, 2 * height, 2 * width, 2)


@torch.no_grad()
def test_a_model_through_its_adapter_predicts_what_the_pipeline_s_call_predicts(kind, pipeline, adapter):
    guidance = {"qwen_image": None, "flux": 2.5, "z_image": 0.0}.get(kind, 1.0)  # without classifier-free guidance
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
def test_a_guided_target_is_what_the_pipeline_s_call_is_guided_by(kind, pipeline, adapter):
    if kind in ("flux", "flux2_dev"):
        pytest.skip("distilled: its pipeline does not guide by a second run")
    config = pipeline.transformer.config
    text, empty = adapter.encode(pipeline, PROMPTS), adapter.encode_empty(pipeline)
    record = asked_by_the_pipeline(pipeline, adapter, **adapter.guidance_arguments(config, 4.0))
    sample, t, output = record[1]
    x = unpacked(sample, pipeline, adapter)
    time = (t if adapter.process == "ddpm" else t / 1000).expand(2)
    both = text, text.replaced(torch.tensor([True, True]), empty)
    c, u = (adapter.predict(pipeline.transformer, x, time, of)[:, : x.shape[1]] for of in both)
    expected = unpacked(output, pipeline, adapter)[:, : x.shape[1]]
    target = adapter.guided(Guidance(4.0).combined(c, u, time), c)
    assert (target - c).norm() > 1e-3 * c.norm()
    assert (target - expected).norm() < 1e-4 * expected.norm()


def public_loss(kind, pipeline, x_0, noise, t, text):
    """The loss [b] as the public training script of a class computes it, with the pipeline's own helpers.

    SD3, FLUX, FLUX.2, Qwen-Image, Z-Image, Lumina 2, Sana: diffusers' examples/dreambooth/train_dreambooth*.py
    (weighting none); AuraFlow, Wan: the same of their pipelines' calls; PixArt: its repository's training loss, the
    noise's error by IDDPM (the variational term is tested apart); HunyuanDiT: v of its pipeline's scheduler.
    """
    model, width = pipeline.transformer, x_0.shape[-1]
    if kind == "pixart":
        noisy = pipeline.scheduler.add_noise(x_0, noise, t)
        output = model(
            noisy,
            encoder_hidden_states=text.embeddings,
            encoder_attention_mask=text.mask,
            timestep=t,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample
        return (output.chunk(2, dim=1)[0] - noise).square().mean((1, 2, 3))
    if kind == "hunyuan_dit":  # min-SNR aside: the velocity of DDPM by the scheduler, and its call's arguments
        noisy = pipeline.scheduler.add_noise(x_0, noise, t)
        text_keywords = {
            "encoder_hidden_states": text.embeddings[:, :77, :24],
            "text_embedding_mask": text.mask[:, :77].long(),
            "encoder_hidden_states_t5": text.embeddings[:, 77:].contiguous(),
            "text_embedding_mask_t5": text.mask[:, 77:].long(),
        }
        height, width = x_0.shape[-2:]
        region = get_resize_crop_region_for_grid((height // 2, width // 2), 32)
        output = model(
            noisy,
            t.float(),
            **text_keywords,
            image_meta_size=torch.tensor([[1024.0, 1024.0, 8 * height, 8 * width, 0, 0]] * 2),
            style=torch.tensor([0, 0]),
            image_rotary_emb=get_2d_rotary_pos_embed(8, region, (height // 2, width // 2), output_type="pt"),
        ).sample
        return (output.chunk(2, dim=1)[0] - pipeline.scheduler.get_velocity(x_0, noise, t)).square().mean((1, 2, 3))
    sigmas = t.view(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * x_0 + sigmas * noise
    target = noise - x_0
    b, c, height, _ = x_0.shape
    prompt = {"encoder_hidden_states": text.embeddings}
    if kind == "sd3":
        output = model(noisy, timestep=1000 * t, pooled_projections=text.pooled, **prompt).sample
    elif kind == "flux":
        ids = FluxPipeline._prepare_latent_image_ids(b, height // 2, width // 2, x_0.device, x_0.dtype)
        output = model(
            hidden_states=FluxPipeline._pack_latents(noisy, b, c, height, width),
            timestep=1000 * t / 1000,
            guidance=torch.tensor([3.5]).expand(b),
            pooled_projections=text.pooled,
            txt_ids=torch.zeros(text.embeddings.shape[1], 3),
            img_ids=ids,
            **prompt,
        ).sample
        output = FluxPipeline._unpack_latents(output, 2 * height, 2 * width, 2)
    elif kind == "qwen_image":
        output = model(
            hidden_states=QwenImagePipeline._pack_latents(noisy[:, None], b, c, height, width),
            timestep=1000 * t / 1000,
            encoder_hidden_states_mask=text.mask.long(),
            img_shapes=[[(1, height // 2, width // 2)]] * b,
            **prompt,
        ).sample
        output = QwenImagePipeline._unpack_latents(output, 2 * height, 2 * width, 2)[:, :, 0]
    elif kind == "z_image":
        images = list(noisy.unsqueeze(2).unbind(0))
        prompts = [e[m] for e, m in zip(text.embeddings, text.mask)]
        output = -torch.stack(model(images, (1000 - 1000 * t) / 1000, prompts, return_dict=False)[0]).squeeze(2)
    elif kind.startswith("flux2"):
        output = model(
            hidden_states=Flux2KleinPipeline._pack_latents(noisy),
            timestep=1000 * t / 1000,
            guidance=torch.tensor([3.5]).expand(b) if kind == "flux2_dev" else None,
            txt_ids=Flux2KleinPipeline._prepare_text_ids(text.embeddings),
            img_ids=(ids := Flux2KleinPipeline._prepare_latent_ids(noisy)),
            **prompt,
        ).sample
        output = Flux2KleinPipeline._unpack_latents_with_ids(output, ids)
    elif kind == "wan":
        output = model(noisy[:, :, None], timestep=1000 * t, **prompt).sample[:, :, 0]
    elif kind == "aura_flow":
        output = model(noisy, timestep=t, **prompt).sample
    elif kind == "lumina2":
        output = -model(noisy, timestep=1.0 - t, encoder_attention_mask=text.mask.long(), **prompt).sample
    elif kind == "sana":
        output = model(noisy, timestep=1000 * t, encoder_attention_mask=text.mask.long(), **prompt).sample
    return (output - target).square().mean((1, 2, 3))


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
    assert issubclass(scope["HunyuanSuper"], Adapter)


def test_a_class_that_mixes_prompts_is_refused_with_the_reason():
    with pytest.raises(UserError, match="CogView4Transformer2DModel: is not supported: its pipeline pads prompts"):
        adapter_of("CogView4Transformer2DModel")


def test_pipelines_that_share_a_transformer_class_alone_are_refused(tmp_path):
    folder = write_pipeline("sana", tmp_path / "pipeline")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("SanaPipeline", "SanaSprintPipeline"))
    with pytest.raises(UserError, match="pipeline: SanaSprintPipeline is not supported, wanted SanaPipeline"):
        Prompts.load(str(folder), torch.device("cpu"))


@pytest.mark.parametrize(("kind", "key"), [("sana", "guidance_embeds"), ("qwen_image", "use_additional_t_cond")])
def test_transformers_of_such_pipelines_are_refused(kind, key):
    made = KINDS[kind]().transformer
    settings = {name: value for name, value in made.config.items() if not name.startswith("_")}
    model, text = type(made)(**{**settings, key: True}), TextCondition.of(torch.zeros(1, 4, 32))
    with pytest.raises(UserError, match=f"with {key} is of .*: not supported"):
        ADAPTERS.find(kind)().predict(model, torch.zeros(1, 4, 8, 8), torch.ones(1), text, 4.5)


@torch.no_grad()
def test_why_cogview4_is_refused():
    """What its pipeline's transformer makes of a prompt changes with the other prompts of a batch."""
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel
    from transformers import GlmConfig, GlmModel

    torch.manual_seed(0)
    sizes = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "rope_axes_dim": (16, 16)}
    width = {"text_embed_dim": 32, "time_embed_dim": 16, "condition_dim": 16}
    transformer = CogView4Transformer2DModel(in_channels=4, out_channels=4, sample_size=8, **sizes, **width)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}
    depth = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32}
    encoder = GlmModel(GlmConfig(vocab_size=vocabulary_size(), **depth, **heads))
    parts = {"transformer": transformer, "text_encoder": encoder, "tokenizer": tokenizer(64, "left")}
    pipeline = CogView4Pipeline(vae=kl(), scheduler=FlowMatchEulerDiscreteScheduler(), **parts)
    long = "a nine with a zero and " * 5
    alone, both = (
        pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)[0][:1]
        for prompts in (["a nine"], ["a nine", long])
    )
    assert alone.shape[1] < both.shape[1]
    x, t, sizes_in = torch.randn(1, 4, 8, 8), torch.tensor([500.0]), [torch.tensor([[64.0, 64.0]])] * 3
    outputs = [transformer(x, text, t, *sizes_in, return_dict=False)[0] for text in (alone, both)]
    assert (outputs[0] - outputs[1]).abs().max() > 0.01 * outputs[0].std()


def test_shift_and_schedule_are_the_scheduler_s():
    static = FlowMatchEulerDiscreteScheduler(shift=3.0)
    u = torch.linspace(1, 1000, 1000, dtype=torch.float64).flip(0) / 1000
    process = process_of("flow", dict(static.config), TimestepDensity(), "none", None, 2)
    torch.testing.assert_close(process.times(u, (1, 4, 8, 8)), static.sigmas, rtol=1e-5, atol=1e-6)
    dynamic = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    tokens = 1024
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    dynamic.set_timesteps(10, mu=mu)
    alpha = pipeline_shift(dict(dynamic.config), tokens)
    sigma = torch.linspace(1, 0.001, 10)
    torch.testing.assert_close(alpha * sigma / (1 + (alpha - 1) * sigma), dynamic.sigmas[:-1], rtol=1e-5, atol=1e-6)
    assert math.isclose(alpha, math.exp(mu))


def test_a_rectangle_is_shifted_by_its_area():
    process = process_of("flow", {}, TimestepDensity(base_side=16), "none", None, 2)
    u = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    square, portrait, landscape = (process.times(u, (9, 4, *sides)) for sides in ((32, 32), (64, 16), (16, 64)))
    torch.testing.assert_close((portrait, landscape), (square, square))
    torch.testing.assert_close(square, 2 * u.float() / (1 + u.float()))  # alpha = 2 of the uniform density


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "given"])
@pytest.mark.parametrize("target", ["epsilon", "v_prediction"])
def test_ddpm_is_the_scheduler_s(betas, target):
    from diffusers import DDPMScheduler

    how = {"trained_betas": [1e-3 + i * 1e-5 for i in range(950)]} if betas == "given" else {"beta_schedule": betas}
    scheduler = DDPMScheduler(prediction_type=target, **how)
    x_0, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    t = torch.tensor([10, 900])
    process = process_of("ddpm", dict(scheduler.config), TimestepDensity(), "none", None, 2)
    x_t = process.add_noise(x_0, noise, t)
    torch.testing.assert_close(x_t, scheduler.add_noise(x_0, noise, t), rtol=1e-4, atol=1e-5)
    perfect = noise if target == "epsilon" else scheduler.get_velocity(x_0, noise, t)
    loss = process.losses(perfect, {}, x_0, noise, x_t, t)["noise"]
    assert loss.max() < 1e-9


def test_other_schedulers_are_refused():
    with pytest.raises(UserError, match="beta_schedule: wanted linear or scaled_linear, found sigmoid"):
        ddpm_schedule({"beta_schedule": "sigmoid"})
    with pytest.raises(UserError, match="rescale_betas_zero_snr: wanted false, found true"):
        ddpm_schedule({"rescale_betas_zero_snr": True})
    with pytest.raises(UserError, match="prediction_type: wanted epsilon or v_prediction, found sample"):
        process_of("ddpm", {"prediction_type": "sample"}, TimestepDensity(), "none", None, 2)


def test_the_record_knows_the_pipeline(tmp_path):
    folder = write_pipeline("sd3", tmp_path / "pipeline")
    record = record_of(str(folder), folder)
    assert record.pipeline_class == "StableDiffusion3Pipeline"
    assert record.transformer_class == "SD3Transformer2DModel"
    assert record.scheduler["shift"] == 3.0
    same = write_pipeline("sd3", tmp_path / "same")
    other = write_pipeline("sd3", tmp_path / "other", seed=1)
    assert record_of(str(same), same).text_sha256 == record.text_sha256
    assert record_of(str(other), other).text_sha256 != record.text_sha256


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
    guidance = {"qwen_image": None, "flux": 2.5, "z_image": 0.0}.get(kind, 1.0)
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
