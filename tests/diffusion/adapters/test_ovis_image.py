"""Ovis-Image: where the words of a prompt stand, behind an instruction whose tokens the model is not given."""

import torch
from tiny_pipelines import write_pipeline

from dit_shd.analysis.prompt_words import prompt_words
from dit_shd.diffusion.adapters import ADAPTERS
from dit_shd.diffusion.assembly import assemble


def test_words_stand_where_another_word_changes_the_embeddings_first(tmp_path):
    pipeline, _ = assemble(str(write_pipeline("ovis_image", tmp_path / "pipeline")), None)
    adapter = ADAPTERS.find("ovis_image")()
    words = prompt_words(pipeline, adapter, "a thin seven", 256, {})
    assert [word.text for word in words] == ["a", "thin", "seven"]
    pipeline.text_encoder.eval()
    prompts = ["a thin seven", "one thin seven", "a thick seven", "a thin six"]
    embeddings = adapter.encode(pipeline, prompts).embeddings
    for word, other in zip(words, embeddings[1:], strict=True):
        changed = (other - embeddings[0]).abs().amax(1) > 1e-6
        assert word.place == int(changed.nonzero()[0])
    assert torch.equal(embeddings[0, 8:], torch.zeros_like(embeddings[0, 8:]))
    pipeline.tokenizer.chat_template = "{% for message in messages %}{{ message['content'] | upper }}{% endfor %}"
    assert prompt_words(pipeline, adapter, "a thin seven", 256, {})[0].text == "token 0"
