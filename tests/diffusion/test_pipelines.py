"""Prompts of tiny pipelines of every kind: what is refused, counted, cut and recorded."""

import inspect
import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from pipeline_oracle import PROMPTS, known_of
from small_families import same
from tiny_pipelines import KINDS, write_pipeline

from dit_shd.cli.program import main
from dit_shd.core import installation
from dit_shd.core.errors import UserError
from dit_shd.core.places import HubName
from dit_shd.data.pipeline_record import only_variant, weight_files
from dit_shd.diffusion import pipelines
from dit_shd.diffusion.adapters import by_class
from dit_shd.diffusion.assembly import assemble
from dit_shd.diffusion.assembly import write_pipeline as write_whole
from dit_shd.diffusion.pipelines import Prompts, folder_of, open_pipeline, record_of
from dit_shd.diffusion.prompt_encoding import MAX_TOKENS
from dit_shd.models import cards


def test_prompts_are_never_left_uncleaned(kind, pipeline, monkeypatch):
    """Without beautifulsoup4 or ftfy pipelines warn, and encode the prompts as they are."""
    folder = Path(pipeline.config._name_or_path)
    monkeypatch.setattr(installation, "find_spec", lambda name: None if name in ("bs4", "ftfy") else name)
    missing = {"pixart": "packages bs4 and ftfy", "wan": "package ftfy", "prx": "package ftfy"}.get(kind)
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
        place, tokens = pipeline.config._name_or_path, adapter.most_text(pipeline.transformer.config) + 1
        with pytest.raises(UserError, match=f"text_tokens: wanted {tokens - 1} or less, .* found {tokens}"):
            Prompts.load(place, torch.device("cpu"), text_tokens=tokens)


def test_pipelines_that_share_a_transformer_class_alone_are_refused(tmp_path):
    folder = write_pipeline("sana", tmp_path / "pipeline")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("SanaPipeline", "SanaSprintPipeline"))
    with pytest.raises(UserError, match="pipeline: SanaSprintPipeline is not supported, wanted SanaPipeline"):
        Prompts.load(str(folder), torch.device("cpu"))


def test_of_the_hub_the_weights_that_are_opened_are_downloaded(tmp_path, monkeypatch):
    folder = write_pipeline("sd3", tmp_path / "pipeline")
    plain = [f"text_encoder/model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    halves = [f"text_encoder/model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    alone = ["text_encoder_2/config.json", "text_encoder_2/model.fp16.safetensors"]
    small = ["transformer/config.json", "transformer/pipeline.json"]
    others = ["sd3.safetensors", *small, "transformer/diffusion_pytorch_model.safetensors"]
    asked = []

    class Repository(HubName):
        def files(self):
            return ["model_index.json", *plain, *halves, *alone, *others]

        def download(self, files):
            asked.append(files)
            return folder

    monkeypatch.setattr(pipelines, "find", lambda *_: Repository("somebody/sd3"))
    assert folder_of("hub:somebody/sd3", text_alone=True) == folder
    assert asked[-1] == ["model_index.json", *plain, *alone, *small]
    folder_of("hub:somebody/sd3")
    assert asked[-1] == ["model_index.json", *plain, *alone, *others[1:]]


@pytest.mark.parametrize("sharded", [False, True])
def test_a_pipeline_whose_weights_are_all_of_a_variant_is_read(tmp_path, sharded):
    """Also what is written of it: text encoders are copied, and opened without naming the variant."""
    made = KINDS["sd3"]()
    made.save_pretrained(folder := tmp_path / "half", variant="fp16", max_shard_size="20KB" if sharded else "1GB")
    assert only_variant(folder / "text_encoder_3") == "fp16"
    assert sharded == (len(weight_files(folder / "text_encoder_3")) > 1)
    pipeline, record = assemble(str(folder), None)
    assert same(pipeline.text_encoder_3.state_dict(), made.text_encoder_3.state_dict())
    write_whole(pipeline, record, str(folder), tmp_path / "whole")
    whole = type(pipeline).from_pretrained(tmp_path / "whole", use_safetensors=True)
    assert same(whole.text_encoder_3.state_dict(), made.text_encoder_3.state_dict())
    assert record_of("", tmp_path / "whole").text_sha256 == record.text_sha256
    for name in ("text_encoder", "vae"):
        for file in weight_files(folder / name):
            file.rename(file.with_name(file.name.replace("fp16", "bf16")))
    with pytest.raises(
        UserError, match=r"^pipeline: .*half has weights of several variants \(bf16, fp16\), wanted one$"
    ):
        open_pipeline(folder)


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


@pytest.mark.parametrize(
    ("vae", "words"),
    [
        (
            "AutoencoderKLLTXVideo",
            "pipeline: LTXPipeline: its autoencoder AutoencoderKLLTXVideo is not supported: diff",
        ),
        ("AutoencoderKL", "LTXVideoTransformer3DModel: no adapter says how it is asked; .* one frame is an image"),
    ],
)
def test_no_adapter_is_asked_for_where_the_autoencoder_is_not_supported(tmp_path, vae, words):
    """Whoever had written one was refused by the autoencoder then."""
    index = {"_class_name": "LTXPipeline", "transformer": ["diffusers", "LTXVideoTransformer3DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "vae": ["diffusers", vae]}))
    with pytest.raises(UserError, match=words):
        Prompts.load(str(tmp_path), torch.device("cpu"))


def test_sd3_without_its_t5_is_encoded_and_assembled_as_diffusers_does(tmp_path, capsys):
    """Saved with text_encoder_3=None, as users of little memory do; diffusers opens it when it is told so again."""
    without = {"text_encoder_3": None, "tokenizer_3": None}
    whole = StableDiffusion3Pipeline.from_pretrained(write_pipeline("sd3", tmp_path / "whole"), **without)
    whole.save_pretrained(tmp_path / "cut")
    with torch.no_grad():
        wanted, _, pooled, _ = whole.encode_prompt("a seven", None, None, do_classifier_free_guidance=False)
    found = Prompts.load(str(tmp_path / "cut"), torch.device("cpu"))(["a seven"])
    assert torch.equal(found.embeddings, wanted) and torch.equal(found.pooled, pooled)
    whole.register_modules(tokenizer_3=StableDiffusion3Pipeline.from_pretrained(tmp_path / "whole").tokenizer_3)
    whole.save_pretrained(tmp_path / "cut with a tokenizer")
    for name in ("cut", "cut with a tokenizer"):
        prompts = Prompts.load(str(tmp_path / name), torch.device("cpu"))
        assert prompts.too_long(["a seven " * 60, "a seven"]) == 1, "CLIP alone reads it"
    (tmp_path / "cut" / "transformer" / "README.md").write_text(f"{cards.LOAD}.")
    assert main(["pipeline", str(tmp_path / "cut"), str(tmp_path / "out")]) == 0
    opened = f"from_pretrained('{tmp_path / 'out'}', text_encoder_3=None, tokenizer_3=None)(prompt"
    assert opened in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'from_pretrained("this folder", text_encoder_3=None, tokenizer_3=None)`' in card
    again = StableDiffusion3Pipeline.from_pretrained(tmp_path / "out", **without)
    assert same(again.transformer.state_dict(), whole.transformer.state_dict())
