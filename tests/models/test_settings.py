"""Settings that give the same weights another meaning, in configs of two models."""

import re

import pytest
import transformers
from diffusers import PixArtTransformer2DModel

from dit_shd.distillation.initialisation.initialise import Initialisation, remarks
from dit_shd.models.families.transformers import CausalLM
from dit_shd.models.settings import differing_settings, in_words

SIZES = {
    "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8,
    "vocab_size": 9, "max_position_embeddings": 32,
}  # fmt: skip

ROPE = "rope_parameters" if int(transformers.__version__.partition(".")[0]) > 4 else "rope_theta"


def llama(**changes):
    return CausalLM(config={**SIZES, **changes})


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({}, []),
        ({"num_hidden_layers": 1, "hidden_size": 8, "max_position_embeddings": 64, "initializer_range": 0.5}, []),
        ({"hidden_act": "relu"}, ["hidden_act"]),
        ({"rms_norm_eps": 0.1}, ["rms_norm_eps"]),
        ({ROPE: {"rope_type": "default", "rope_theta": 5e5} if ROPE == "rope_parameters" else 5e5}, [ROPE]),
        ({"tie_word_embeddings": True}, ["tie_word_embeddings"]),
    ],
)
def test_settings_that_weights_depend_on_are_told_and_sizes_are_not(changes, keys):
    """A student of other rotary positions began with its teacher's weights, which were another model there."""
    student, teacher = llama(**changes), llama()
    assert [*differing_settings(student, teacher)] == keys
    lines = [*remarks(Initialisation(weights="teacher"), [], student, teacher)]
    assert [key for line in lines for key in keys if f"{key}: " in line] == keys
    assert len(lines) == bool(keys)
    assert not [*remarks(Initialisation(), [], student, teacher)]


def test_embeddings_may_be_untied():
    assert not differing_settings(llama(), llama(tie_word_embeddings=True))


def test_of_diffusers_too():
    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "sample_size": 8, "num_layers": 1}
    one, other = (PixArtTransformer2DModel(**sizes, norm_eps=eps) for eps in (1e-6, 1e-3))
    assert in_words(differing_settings(one, other)) == "norm_eps: 1e-06 here, 0.001 there"


def test_fewer_layers_of_a_type_with_windows(tmp_path):
    """Gemma's order of windows and whole attention is of each number of layers; its weights come from other layers."""
    sizes = SIZES | {"model_type": "gemma3_text", "num_hidden_layers": 12, "head_dim": 8, "sliding_window": 4}
    teacher = CausalLM.from_options(config=sizes)
    teacher.save_pretrained(tmp_path)

    def student(**changes):
        return CausalLM.from_options(str(tmp_path), pretrained=False, config={"num_hidden_layers": 6, **changes})

    (line,) = remarks(Initialisation(weights="teacher"), [], student(), teacher)
    kinds = re.search(r"layer_types=\[(.*)\]", line)[1].split(",")
    assert re.match(r"\d of the student's layers attend otherwise .*\(first network\.model\.layers\.\d: ", line)
    assert not [*remarks(Initialisation(weights="teacher"), [], student(layer_types=kinds), teacher)]
