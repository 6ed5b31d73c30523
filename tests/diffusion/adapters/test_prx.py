"""PRX: text without rows and places, prompts that are cleaned, a tokenizer that pads before them."""

import numpy as np
import pytest
import torch
from tiny_pipelines import KINDS, write_pipeline
from widening import random

from dit_shd import capture
from dit_shd.analysis.inspect_prompt import inspect_prompt
from dit_shd.diffusion.adapters import adapter_of_model
from dit_shd.diffusion.pipelines import Prompts, open_pipeline
from dit_shd.diffusion.prompt_generation import draw
from dit_shd.distillation.initialisation import depth
from dit_shd.distillation.kept import KeptPlan
from dit_shd.models.students import smaller

PROMPT = "Two thin #seven"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pipeline("prx", tmp_path_factory.mktemp("p") / "pipeline")


@pytest.mark.parametrize("side", ["left", "right"])
def test_words_stand_where_the_tokenizer_puts_them(folder, side):
    whole = open_pipeline(folder)
    whole.tokenizer.padding_side = side
    adapter = adapter_of_model(whole.transformer)
    template = adapter.template(whole, PROMPT, {})
    assert template.prompt == "two thin seven"
    ids = whole.tokenizer(template.prompt, padding="max_length", max_length=64).input_ids
    assert whole.tokenizer.convert_ids_to_tokens(ids[1 - template.dropped :][:3]) == ["two", "thin", "seven"]
    condition = adapter.encode(whole, [PROMPT, "a nine with a zero"])
    assert condition.mask.sum(1).tolist() == [5, 7] and condition.tokens == 7
    assert condition.mask[0].tolist() == [True] * 5 + [False] * 2


def test_a_word_s_share_is_that_of_its_token(folder):
    call = {"height": 16, "width": 8, "num_inference_steps": 2, "guidance_scale": 1.0, "use_resolution_binning": False}
    drawn = inspect_prompt(str(folder), PROMPT, None, call, None, seed=1)
    assert drawn.words == ["two", "thin", "seven", "other text"]
    whole = open_pipeline(folder)
    with capture(whole.transformer, ["*"]) as captures:
        draw(whole, [PROMPT], 1, range(1), call)
    ids = whole.tokenizer("two thin seven", padding="max_length", max_length=64).input_ids
    for name, shares in drawn.shares.items():
        maps = captures[name].map()[0].detach()
        assert maps.shape[1:] == (8, 64 + 8)
        for number, word in enumerate(drawn.words[:3]):
            of_word = maps[:, :, ids.index(whole.tokenizer.convert_tokens_to_ids(word))].mean(1)
            np.testing.assert_allclose(shares[-1][:, number], of_word, rtol=1e-4)


def test_prompts_that_are_cut_are_counted_as_they_are_cleaned(folder):
    prompts = Prompts.load(str(folder), torch.device("cpu"))
    assert prompts.too_long(["a nine " * 40, "(a) " * 31, "a nine"]) == 1


def test_several_prompts_are_drawn_one_by_one(folder):
    """With guidance its call fails on more than one."""
    whole = open_pipeline(folder)
    call = {"height": 16, "width": 16, "num_inference_steps": 1, "use_resolution_binning": False, "guidance_scale": 3.0}
    both = draw(whole, ["a nine", "two digits"], 0, range(2), call)
    assert np.array_equal(both[1], draw(whole, ["two digits"], 0, range(1, 2), call)[0])


def test_half_of_its_heads_and_blocks():
    sizes = dict(KINDS["prx"]().transformer.config)
    student = smaller(sizes, {"num_heads": 2, "depth": 1})
    assert (student["hidden_size"], student["depth"], student["axes_dim"]) == (16, 1, [4, 4])
    teacher = random(KINDS["prx"]().transformer, 0)
    names = {"blocks.0": "blocks.1"}
    kept = depth.student_of(teacher, KeptPlan(names, names, {"blocks.0": 0.0}))
    assert torch.equal(kept.blocks[0].up_proj.weight, teacher.blocks[1].up_proj.weight)
