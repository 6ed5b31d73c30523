"""Settings that give the same weights another meaning, in configs of two models."""

import re

import pytest
import torch
import transformers
from diffusers import PixArtTransformer2DModel

from dit_shd.distillation.initialisation.initialise import Initialisation, remarks
from dit_shd.models.families.timm import TimmModel
from dit_shd.models.families.transformers import CausalLM
from dit_shd.models.settings import differing_settings, in_words

SIZES = {
    "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8,
    "vocab_size": 9, "max_position_embeddings": 32,
}  # fmt: skip

NEW = int(transformers.__version__.partition(".")[0]) > 4
ROPE = "rope_parameters" if NEW else "rope_theta"


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


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("granite", "residual_multiplier", 0.2),
        ("granite", "attention_multiplier", 0.3),
        ("cohere", "logit_scale", 1.0),
        ("gemma3_text", "query_pre_attn_scalar", 8),
        ("gpt_neox", "use_parallel_residual", False),
        pytest.param("gptj", "rotary_dim", 2, marks=pytest.mark.skipif(not NEW, reason="its GPT-J has no SDPA")),
        ("gpt2", "scale_attn_weights", False),
        ("mixtral", "num_experts_per_tok", 1),
        ("qwen3_moe", "norm_topk_prob", True),
    ],
)
def test_what_a_class_of_transformers_calls_its_settings_need_not_be_known(kind, name, value):
    """Of shapes alone: a default differs from the value, and nothing else of the two."""
    sizes = {"model_type": kind, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
    with torch.device("meta"):
        student, teacher = (CausalLM(config={**sizes, **changes}) for changes in ({}, {name: value}))
        other = CausalLM(config={**sizes, "num_hidden_layers": 2, "attention_dropout": 0.5, "bos_token_id": 3})
    assert [*differing_settings(student, teacher)] == [name]
    assert not differing_settings(student, other)


def test_settings_inside_of_settings():
    """Those of the text in a model of text and images."""
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 4, "vocab_size": 9}
    sight = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    with torch.device("meta"):
        student, teacher = (
            CausalLM(config={"model_type": "gemma3", "vision_config": sight, "text_config": {**text, **changes}})
            for changes in ({"intermediate_size": 8}, {"intermediate_size": 6, "query_pre_attn_scalar": 8})
        )
    assert differing_settings(student, teacher) == {"text_config.query_pre_attn_scalar": (256, 8)}


def test_scores_that_are_divided_by_a_layers_number_are_told_where_layers_move():
    sizes = {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "vocab_size": 9, "scale_attn_by_inverse_layer_idx": True}
    teacher, same, less = (CausalLM(config={**sizes, "n_layer": layers}) for layers in (4, 4, 2))
    (line,) = remarks(Initialisation(weights="teacher"), [], less, teacher)
    assert line.startswith("scale_attn_by_inverse_layer_idx: 2 of the student's layers divide their scores by another ")
    assert not [*remarks(Initialisation(weights="teacher"), [], same, teacher)]


@pytest.mark.parametrize(
    ("model", "options", "keys"),
    [
        ("vit_base_patch16_clip_quickgelu_224", {}, ["activation"]),
        ("vit_base_patch16_clip_224", {"global_pool": "avg", "fc_norm": False}, ["global_pool"]),
        ("vit_base_patch16_clip_224", {"act_layer": "gelu_tanh"}, ["activation"]),
        ("vit_base_patch16_clip_224", {"depth": 2, "num_heads": 4, "drop_rate": 0.1, "init_values": 0.1}, []),
        ("vit_base_patch16_224", {}, ["mean", "std", "norm_eps"]),
        ("eva02_tiny_patch14_224", {"use_rot_pos_emb": False}, ["rope"]),
    ],
)
def test_of_timm_the_networks_are_compared(model, options, keys):
    """Architectures have defaults that no config says."""
    sizes = {"depth": 1, "embed_dim": 24, "num_heads": 2}

    def classifier(name, options):
        return TimmModel(model=name, num_classes=3, img_size=28, options={**sizes, "patch_size": 14, **options})

    with torch.device("meta"):
        student = classifier(model if model.startswith("eva") else "vit_base_patch16_clip_224", {})
        teacher = classifier(model, options)
    assert [*differing_settings(student, teacher)] == keys


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
