"""LongCat-Image: prompts as they are, in pieces, each with a negative prompt of its own."""

import numpy as np
import pytest
import torch
from tiny_pipelines import write_pipeline

from dit_shd.analysis.prompt_words import prompt_words
from dit_shd.cli.program import main
from dit_shd.diffusion import prompt_generation
from dit_shd.diffusion.adapters import ADAPTERS
from dit_shd.diffusion.assembly import assemble

PROMPTS = ["a 'seven nine' and \"one\" don't", "two digits : four and seven with a zero"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return assemble(str(write_pipeline("longcat_image", tmp_path_factory.mktemp("p") / "pipeline")), None)


def test_prompts_are_counted_in_the_pieces_that_the_pipeline_makes(made, monkeypatch):
    """Between quotation marks letter by letter."""
    (pipeline, _), seen = made, []
    forward = pipeline.text_encoder.forward
    monkeypatch.setattr(
        pipeline.text_encoder, "forward", lambda **given: seen.append(given["attention_mask"]) or forward(**given)
    )
    lengths = ADAPTERS.find("longcat_image")().lengths(pipeline, "tokenizer", [*PROMPTS, ""])
    with torch.no_grad():
        pipeline.encode_prompt([*PROMPTS, ""])
    assert [length - lengths[-1] for length in lengths] == [int(row.sum() - seen[0][-1].sum()) for row in seen[0]]
    assert lengths[0] > 15 and lengths[1:] == [9, 0]


def test_prompts_are_drawn_as_they_are_and_several_as_each_alone(made, monkeypatch):
    """By the pipeline's own scale, whose empty prompt is one for all of them."""
    pipeline, record = made
    monkeypatch.setattr(pipeline, "rewire_prompt", lambda *_: pytest.fail("prompts are written anew"))
    call = prompt_generation.call_arguments(pipeline, record, {"height": 16, "width": 24, "num_inference_steps": 2})
    both = prompt_generation.draw(pipeline, PROMPTS, 0, range(2), call)
    for number, prompt in enumerate(PROMPTS):
        alone = prompt_generation.draw(pipeline, [prompt], 0, range(number, number + 1), call)
        assert np.abs(both[number].astype(int) - alone[0]).max() <= 1
    given = {"enable_prompt_rewrite": True, "negative_prompt": "a nine", "guidance": 3}
    call = prompt_generation.call_arguments(pipeline, record, given)
    assert call == {"enable_prompt_rewrite": True, "negative_prompt": "a nine", "guidance_scale": 3}


def test_words_are_named_where_a_prompt_is_one_piece(made):
    pipeline, _ = made
    adapter, call = ADAPTERS.find("longcat_image")(), {"enable_prompt_rewrite": False}
    words = prompt_words(pipeline, adapter, PROMPTS[1], 512, call)
    assert [word.text for word in words] == PROMPTS[1].split()
    ids = pipeline.tokenizer(PROMPTS[1], add_special_tokens=False).input_ids
    assert [word.place for word in words] == list(range(len(ids)))
    assert prompt_words(pipeline, adapter, PROMPTS[0], 512, call)[0].text == "token 0"
    assert prompt_words(pipeline, adapter, PROMPTS[1], 512, {})[0].text == "token 0"


def test_places_of_the_image_are_whole_numbers_in_bfloat16(made):
    pipeline, _ = made
    adapter = ADAPTERS.find("longcat_image")()
    text = adapter.encode(pipeline, ["a nine"])
    x = torch.zeros(1, 16, 8, 12, dtype=torch.bfloat16)
    places = adapter.arguments(pipeline.transformer, x, torch.ones(1), text.to(x), None)["img_ids"]
    assert places[-1].tolist() == [1, 515, 517]


def test_the_call_that_is_printed_is_python(tmp_path, capsys):
    """Also where an argument is an empty text."""
    place = write_pipeline("longcat_image", tmp_path / "pipeline")
    assert main(["pipeline", str(place), str(tmp_path / "made")]) == 0
    assert "(prompt, enable_prompt_rewrite=False, negative_prompt='')" in capsys.readouterr().out
