"""Prompts of tiny pipelines of every kind: what is refused, counted, cut and recorded."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from pipeline_oracle import PROMPTS, known_of
from tiny_pipelines import write_pipeline

from dit_shd.core import installation
from dit_shd.core.errors import UserError
from dit_shd.diffusion.adapters import MAX_TOKENS, by_class
from dit_shd.diffusion.pipelines import Prompts, open_pipeline, record_of


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


def test_pipelines_that_share_a_transformer_class_alone_are_refused(tmp_path):
    folder = write_pipeline("sana", tmp_path / "pipeline")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("SanaPipeline", "SanaSprintPipeline"))
    with pytest.raises(UserError, match="pipeline: SanaSprintPipeline is not supported, wanted SanaPipeline"):
        Prompts.load(str(folder), torch.device("cpu"))


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
