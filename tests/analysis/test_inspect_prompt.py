"""Which image tokens attend to which words: against the maps of the transformer itself."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipelines import LIKE_FLUX, write_pipeline

from dit_shd.analysis import inspect_prompt as inspect_prompt_module
from dit_shd.analysis.inspect import InspectConfig
from dit_shd.analysis.inspect_prompt import inspect_prompt
from dit_shd.analysis.map_sheets import extent
from dit_shd.analysis.prompt_words import prompt_words
from dit_shd.attention.recording.attach import capture
from dit_shd.cli.commands.inspect import inspect_to_folder
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.diffusion.adapters import ADAPTERS, adapter_of
from dit_shd.diffusion.assembly import assemble
from dit_shd.diffusion.prompt_generation import draw

PROMPT = "two thin seven"
CALLS = {"sd3": 7.0, "flux": 3.5, "pixart": 4.5, **dict.fromkeys(LIKE_FLUX, 1.0)}


@pytest.fixture(
    scope="module",
    params=["sd3", "flux", "pixart", *(pytest.param(kind, marks=pytest.mark.slow) for kind in LIKE_FLUX)],
)
def pipeline(request, tmp_path_factory):
    return request.param, write_pipeline(request.param, tmp_path_factory.mktemp("p") / "pipeline")


def test_shares_are_those_of_the_maps(pipeline):
    """By another way: the whole map of every layer in the last forward, softmax(q k^T) in float64."""
    kind, folder = pipeline
    call = {"height": 32, "width": 16, "num_inference_steps": 3, "guidance_scale": CALLS[kind]}
    call |= {"use_resolution_binning": False} if kind == "pixart" else {}
    call |= {"enable_prompt_rewrite": False} if kind == "longcat_image" else {}
    found = inspect_prompt(str(folder), PROMPT, None, call, None, seed=1)
    whole, _ = assemble(str(folder), None)
    with capture(whole.transformer, ["*"]) as captures:
        (picture,) = draw(whole, [PROMPT], 1, range(1), call)
    assert np.array_equal(picture, found.picture)
    assert {"two", "thin", "seven"} <= {word.split()[0] for word in found.words}
    assert len(found.shares) > 1
    for name, shares in found.shares.items():
        layer = captures[name]
        q, k = layer.query[-1].double(), layer.key[-1].double()
        bias = 0 if layer.bias is None else layer.bias.rows(slice(None))[-1]
        maps = (layer.scale * q @ k.transpose(1, 2) + bias).softmax(-1)
        n, m = maps.shape[1:]
        image = range(m)[layer.image] if layer.image is not None else range(0)
        rows = list(image) if len(image) and n == m else list(range(n))
        text = [key for key in range(m) if key not in image]
        over = maps[:, rows][:, :, text].mean(1).detach()  # [h,text]
        np.testing.assert_allclose(shares[-1].sum(1), over.sum(1), rtol=1e-4)
        for word in range(len(found.words) - 1):
            gaps = (over - torch.from_numpy(shares[-1][:, word, None])).abs().amax(0)
            assert gaps.min() < 1e-5, "a word's share is that of one text token"


def test_every_word_has_its_own_map_where_fewer_fit(pipeline, monkeypatch):
    """Of a deep model with many heads: the page finds a word's map, at each timestep, by the number of words."""
    kind, folder = pipeline
    call = {"height": 32, "width": 16, "num_inference_steps": 3, "guidance_scale": CALLS[kind]}
    call |= {"use_resolution_binning": False} if kind == "pixart" else {}
    call |= {"enable_prompt_rewrite": False} if kind == "longcat_image" else {}
    whole = inspect_prompt(str(folder), PROMPT, None, call, None, seed=1).sheets
    monkeypatch.setattr(inspect_prompt_module, "extent", lambda *sizes: replace(extent(*sizes), queries=2))
    few = inspect_prompt(str(folder), PROMPT, None, call, None, seed=1).sheets
    for layer, same in zip(few.layers, whole.layers, strict=True):
        assert len(layer.tokens) == len(layer.levels[0]) > 2
        assert all(np.array_equal(*levels) for levels in zip(layer.levels, same.levels, strict=True))


def test_words_are_those_of_the_prompt_that_pixart_has_cleaned(tmp_path):
    """Its pipeline cleans prompts and makes small letters of them before they are tokens."""
    whole, record = assemble(str(write_pipeline("pixart", tmp_path / "pipeline")), None)
    adapter = adapter_of(record.transformer_class)
    for prompt in ("a http://x.org/two thin seven", "A thin SEVEN"):
        words = prompt_words(whole, adapter, prompt, 300, {})
        ids = whole.tokenizer(whole._text_preprocessing(prompt, clean_caption=True)[0]).input_ids
        pieces = whole.tokenizer.convert_ids_to_tokens(ids)
        assert [word.text for word in words] == ["a", "thin", "seven"]
        assert all(word.text == pieces[word.place].strip("▁") for word in words)
    raw = prompt_words(whole, adapter, "a http://x.org/two seven", 300, {"clean_caption": False})
    assert len(raw) > len(prompt_words(whole, adapter, "a http://x.org/two seven", 300, {}))


def test_words_are_the_tokens_they_name(pipeline):
    """Another word in one place of the prompt changes the embedding there, and the label says which."""
    kind, folder = pipeline
    call = {"height": 16, "width": 16, "num_inference_steps": 2}
    call |= {"use_resolution_binning": False} if kind == "pixart" else {}
    call |= {"enable_prompt_rewrite": False} if kind == "longcat_image" else {}
    found = inspect_prompt(str(folder), PROMPT, None, call, None, seed=1)
    first = found.words[:3] if kind != "sd3" else [word.removesuffix(" (CLIP)") for word in found.words[:3]]
    assert first == PROMPT.split()


@pytest.mark.parametrize("kind", ["pixart", "wan"])
def test_cross_attention_of_as_many_image_as_text_tokens(kind, tmp_path):
    """Its maps are square, as those of self-attention."""
    folder = write_pipeline(kind, tmp_path / "pipeline")
    call = {"height": 32, "width": 16, "num_inference_steps": 2}
    call |= {"use_resolution_binning": False} if kind == "pixart" else {"num_frames": 1}
    whole, _ = assemble(str(folder), None)
    with capture(whole.transformer, ["*.attn2"]) as captures:
        draw(whole, [PROMPT], 1, range(1), call)
    tokens = next(iter(captures.values())).shape[2]
    found = inspect_prompt(str(folder), PROMPT, None, {**call, "max_sequence_length": tokens}, None, seed=1)
    assert found.shares.keys() == captures.keys()
    assert found.words[:3] == (PROMPT.split() if kind == "pixart" else ["token 0", "token 1", "token 2"])
    if kind == "wan":
        with pytest.raises(UserError, match=r"call\.num_frames: wanted 1, found 5: one frame is an image"):
            inspect_prompt(str(folder), PROMPT, None, {**call, "num_frames": 5}, None, seed=1)


@pytest.mark.parametrize("kind", ["hunyuan_dit", "pixart", "sana", "wan"])
def test_all_keys_of_cross_attention_are_text_and_those_of_self_attention_as_the_layer_says(kind):
    adapter = ADAPTERS.find(kind)()
    assert adapter.cross_attention == ("*.attn2",)
    for layer, where in (("blocks.0.attn2", range(0)), ("blocks.0.attn1", None)):
        assert adapter.image_tokens(torch.nn.Module(), layer, {}) == where


def sharpened(weights):
    """Make queries and keys larger, so that the attention of a random model is far from uniform."""
    larger = ("norm_q.weight", "norm_k.weight", "attn2.to_q.weight", "attn2.to_k.weight")
    save_file({n: 20 * t if n.endswith(larger) else t for n, t in load_file(weights).items()}, weights)


def encoded(whole, adapter):
    """The embeddings of the prompt, and of each of its words the place among them: found by their values alone."""
    seen = {}
    encoder = whole.text_encoder

    def before(_, args, kwargs):
        seen["ids"] = [*args, *kwargs.values()][0][0]

    hooks = [
        encoder.register_forward_pre_hook(before, with_kwargs=True),
        encoder.register_forward_hook(lambda _, args, output: seen.update(output=output)),
    ]
    condition = adapter.encode(whole, [PROMPT])
    for hook in hooks:
        hook.remove()
    states = [*(seen["output"].hidden_states or ()), seen["output"].last_hidden_state]
    places = {}
    for word in PROMPT.split():
        (row,) = (seen["ids"] == whole.tokenizer.convert_tokens_to_ids(word)).nonzero()[0].tolist()
        equal = torch.stack([(condition.embeddings[0] == state[0, row]).all(1) for state in states]).any(0)
        (places[word],) = equal.nonzero()[:, 0].tolist()
    return condition, places


@pytest.mark.parametrize("kind", ["lumina2", "sana"])
def test_the_image_and_the_words_stand_where_the_model_puts_them(kind, tmp_path):
    """By the values that go into the attention: tokens of the image and words are found by equality."""
    folder = write_pipeline(kind, tmp_path / "pipeline")
    sharpened(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    call = {"height": 64, "width": 32, "num_inference_steps": 2, "guidance_scale": 1.0}
    call |= {"use_resolution_binning": False} if kind == "sana" else {}
    found = inspect_prompt(str(folder), PROMPT, None, call, None, seed=1)
    assert found.words == [*PROMPT.split(), "other text"]
    if kind == "sana":  # its pipeline makes small letters
        shouted = inspect_prompt(str(folder), f" {PROMPT.upper()}", None, call, None, seed=1)
        assert shouted.words == found.words
        assert all(np.array_equal(shares, shouted.shares[name]) for name, shares in found.shares.items())
    whole, record = assemble(str(folder), None)
    model, values = whole.transformer, {}
    condition, places = encoded(whole, adapter_of(record.transformer_class))
    if kind == "lumina2":
        model.noise_refiner[-1].register_forward_hook(lambda _, args, output: values.update(image=output[0]))
        model.context_refiner[-1].register_forward_hook(lambda _, args, output: values.update(text=output[0]))
        model.layers[0].register_forward_pre_hook(lambda _, args: values.update(joint=args[0][0]))
        model.x_embedder.register_forward_pre_hook(lambda _, args: values.update(patches=args[0][0]))
        model.register_forward_pre_hook(lambda _, args, kw: values.update(x=kw["hidden_states"][0]), with_kwargs=True)
    with capture(model, ["layers.*"] if kind == "lumina2" else ["*.attn2"]) as captures:
        draw(whole, [PROMPT], 1, range(1), call)
    assert len(found.shares) == 2
    for name, shares in found.shares.items():
        layer = captures[name]
        bias = 0 if layer.bias is None else layer.bias.rows(slice(None))[0]
        q, k = layer.query[0].double(), layer.key[0].double()
        maps = (layer.scale * q @ k.repeat_interleave(len(q) // len(k), 0).transpose(1, 2) + bias).softmax(-1)
        if kind == "lumina2":
            length = int(condition.mask.sum())
            at = {part: [int(row) for value in values[part] for row in (values["joint"] == value).all(1).nonzero()]
                  for part in ("image", "text")}  # fmt: skip
            assert sorted(at["image"] + at["text"]) == list(range(maps.shape[1]))
            maps = maps[:, at["image"]][:, :, at["text"]]
            assert maps.shape[2] == length
        over = maps.mean(1).detach()
        np.testing.assert_allclose(shares[-1].sum(1), over.sum(1), rtol=1e-4)
        for number, word in enumerate(PROMPT.split()):
            np.testing.assert_allclose(shares[-1][:, number], over[:, places[word]], rtol=1e-4)
        assert np.ptp(over[:, list(places.values())].numpy(), axis=1).min() > 5e-4, "words differ"
    if kind == "lumina2":  # from left to right, then from top to bottom
        patches = values["x"].unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(1, 3, 2, 4, 0).flatten(2)
        assert torch.equal(values["patches"], patches.flatten(0, 1))


def test_the_page_and_its_numbers(tmp_path):
    config = {"model": "asset:captioned_digits", "prompt": "a three at the left", "call": {"num_inference_steps": 3}}
    out = inspect_to_folder(make(InspectConfig, {**config, "out": str(tmp_path / "o")}))
    numbers = json.loads((out / "numbers.json").read_text())
    shares = np.stack([np.array(values) for values in numbers["shares"].values()])
    assert shares.shape == (6, 3, 8, len(numbers["words"]))
    assert 0.02 < shares.sum(-1).mean() < 0.9
    assert "a three at the left" in (out / "index.html").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": None, "call": {"guidance_scale": 2}}, "call, pipeline: are for prompt"),
        (
            {"heads": 2, "timesteps": [5]},
            "heads, timesteps: with prompt=... only model, layers, seed, .*prompt, pipeline",
        ),
        ({"call": {"nothing": 1}}, r"call\.nothing: is no argument of StableDiffusion3Pipeline"),
        (
            {"model": "asset:digits_teacher"},
            "wanted a folder with model_index.json.*digits_teacher",
        ),
    ],
)
def test_bad_input(changes, message, tmp_path):
    values = {"model": "asset:captioned_digits", "prompt": "a three", "out": str(tmp_path / "o"), **changes}
    with pytest.raises(UserError, match=message):
        inspect_to_folder(make(InspectConfig, {key: value for key, value in values.items() if value is not None}))


@pytest.mark.parametrize("kind", ["lumina2", "sd3", "pixart"])
def test_timesteps_are_the_schedulers(kind, tmp_path):
    """Lumina is given time from 0 at the noise on, and the last of PixArt's timesteps here is 1."""
    folder = write_pipeline(kind, tmp_path / "pipeline")
    if kind == "pixart":
        leading = {"_class_name": "DDIMScheduler", "timestep_spacing": "leading", "steps_offset": 1}
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(leading))
        index = json.loads((folder / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", "DDIMScheduler"]
        (folder / "model_index.json").write_text(json.dumps(index))
    call = {"height": 64, "width": 64}
    if kind == "sd3":
        given = {**call, "sigmas": [1.0, 0.75, 0.5]}
        assert len(inspect_prompt(str(folder), PROMPT, None, given, None, seed=1).sheets.timesteps) == 3
    call |= {"num_inference_steps": 4}
    call |= {"use_resolution_binning": False} if kind == "pixart" else {}
    call |= {"enable_prompt_rewrite": False} if kind == "longcat_image" else {}
    times = inspect_prompt(str(folder), PROMPT, None, call, None, seed=1).sheets.timesteps
    assert times == ([751, 501, 251, 1] if kind == "pixart" else sorted(times, reverse=True))
    assert times[0] > 700 and len(times) == 4
