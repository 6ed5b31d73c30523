"""Language models of transformers as a family: made by config, read and written as transformers has them."""

import json

import pytest
import torch
import transformers
from language import GPT2, GPT_NEOX, LLAMA, causal_lm
from packaging.version import Version

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.models.families import FAMILIES
from dit_shd.models.families.transformers import CausalLM
from dit_shd.models.loading import load

TOKENS = torch.tensor([[1, 2, 3, 4, 5]])


def build(**options):
    return FAMILIES.build(Plugin("transformers", options), "student")


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=lambda config: config["model_type"])
def test_what_is_written_transformers_reads(tmp_path, config):
    from transformers import AutoModelForCausalLM

    model = causal_lm(config)
    model.save_pretrained(tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors"} <= names and not any(name.endswith(".bin") for name in names)
    theirs, back = AutoModelForCausalLM.from_pretrained(tmp_path), load(tmp_path)
    assert type(theirs) is type(model.network) is type(back.network)
    for other in (theirs, back):
        assert torch.equal(other(TOKENS).logits, model(TOKENS).logits)
    assert isinstance(back, CausalLM) and back.network.config._attn_implementation == "sdpa"
    again = build(source=str(tmp_path))
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    fresh = build(source=str(tmp_path), pretrained=False)
    assert not torch.equal(fresh(TOKENS).logits, model(TOKENS).logits)


def test_a_config_is_all_that_a_skeleton_needs():
    model = build(config={k: v for k, v in LLAMA.items() if k != "vocab_size"}, vocab_size=99)
    assert model.network.config.vocab_size == 99
    with torch.device("meta"):
        other = CausalLM.from_config(dict(model.config))
    assert {k: v.shape for k, v in other.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_a_padded_vocabulary_of_a_config_stays():
    for named, size in ((264, 264), (99, 257)):
        assert build(config={**LLAMA, "vocab_size": named}, vocab_size=257).network.config.vocab_size == size


def test_every_token_of_a_new_model_learns(tmp_path):
    """By default a type of models pads with a token, which is another one in these data, and does not learn."""
    config = {**LLAMA, "model_type": "gemma", "head_dim": 8, "tie_word_embeddings": False}
    build(config={**config, "pad_token_id": 3}).save_pretrained(tmp_path)
    for model in (build(config=config, vocab_size=99), build(source=str(tmp_path), pretrained=False)):
        model.train()(TOKENS).logits.sum().backward()
        learned = model.network.get_input_embeddings().weight.grad.abs().sum(1) > 0
        assert learned.nonzero().flatten().tolist() == TOKENS[0].tolist()
        assert model.network.config.pad_token_id is None
    assert build(source=str(tmp_path)).network.config.pad_token_id == 3
    assert build(config={"model_type": "glm", **{k: v for k, v in config.items() if k != "model_type"}}, vocab_size=99)


@pytest.mark.filterwarnings("error::FutureWarning")
def test_blocks_are_computed_again_in_the_backward():
    model = causal_lm(GPT2).train()
    model(TOKENS).logits.sum().backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.enable_gradient_checkpointing()
    model(TOKENS).logits.sum().backward()
    for p, want in zip(model.parameters(), wanted):
        torch.testing.assert_close(p.grad, want)


def folder_with(folder, config=None, weights=True, **files):
    causal_lm(GPT2).save_pretrained(folder)
    if config is not None:
        told = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**told, **config}))
    if not weights:
        (folder / "model.safetensors").unlink()
    for name, content in files.items():
        (folder / name.replace("_bin", ".bin")).write_bytes(content)
    return str(folder)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"config": {"n_embd": 20}}, r"the weights do not fit config\.json|cannot be read as GPT2LMHeadModel"),
        ({"config": {"n_layer": 3}}, r"the weights do not fit config\.json: \d+ missing, first transformer\.h\.2"),
        ({"weights": False}, r"wanted model\.safetensors beside config\.json, found none"),
        (
            {"weights": False, "pytorch_model_bin": b"a pickle"},
            r"wanted model\.safetensors beside config\.json, found pytorch_model\.bin",
        ),
        ({"config": {"model_type": "mine", "auto_map": {"AutoConfig": "x.C"}}}, r"has code of its own \(auto_map\)"),
        ({"config": {"n_head": 3}}, r"transformers: no causal language model|cannot be read"),
    ],
)
def test_folders_that_cannot_be_read(tmp_path, broken, message):
    with pytest.raises(UserError, match=message) as error:
        load(folder_with(tmp_path, **broken))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"wanted model_type \(as llama, gpt2\) or source=FOLDER"),
        ({"config": {**GPT2, "n_embed": 3}}, r"config of gpt2: unknown key 'n_embed', did you mean 'n_embd'"),
        pytest.param(
            {"config": {**LLAMA, "num_attention_heads": 3}},
            r"no causal language model can be made .* of type llama",
            marks=pytest.mark.skipif(Version(transformers.__version__) < Version("5"), reason="it makes heads of 5"),
        ),
        ({"config": {"model_type": "gemma2"}}, r"a gemma2 caps its scores \(attn_logit_softcapping\)"),
        ({"config": {"model_type": "gpt9"}}, r"no causal language model can be made of type gpt9, .*; did you mean "),
        ({"config": {"model_type": "????"}}, r"of type \?\?\?\?, .*; wanted one as llama or gpt2"),
        ({"config": {"model_type": "t5"}}, r"a t5 is no causal language model; wanted one as llama or gpt2"),
        ({"config": {"model_type": "gpt2", "n_head": 0}}, r"of this config of type gpt2 \(a size of 0\)"),
        ({"config": {"model_type": "gpt2", "n_layer": 0}}, r"this config of type gpt2 has no layers"),
        ({"config": {"model_type": "gpt2", "n_layer": -1}}, r"this config of type gpt2 has no layers"),
        ({"config": {"model_type": "bloom", "n_layer": 1, "hidden_size": 8, "n_head": 2}}, r"type bloom"),
        ({"source": "nowhere"}, r"wanted a run folder.* found nothing at 'nowhere'"),
        ({"source": "asset:digits_teacher"}, r"no language model ships with dit_shd"),
    ],
)
def test_configs_of_no_model(options, message):
    with pytest.raises(UserError, match=message) as error:
        build(**options)
    assert "\n" not in str(error.value)


def test_a_vocabulary_that_is_too_small_is_refused(tmp_path):
    causal_lm(GPT2).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"knows 257 tokens, the data 300"):
        build(source=str(tmp_path), vocab_size=300)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (
            GPT2,
            {"n_head": 2},
            r"changes num_heads of transformer\.h\.0\.attn from 4 to 2, and the weights of .* pretra",
        ),
        (GPT2, {"n_layer": 1}, r"changes transformer\.h\.1\.\S+ from \(48,\) to nothing, .* pretrained: false"),
        (LLAMA, {"head_dim": 8}, r"changes \S+k_proj\.weight from \(8, 16\) to \(16, 16\)"),
        (GPT_NEOX, {"num_attention_heads": 2}, r"changes head_size of gpt_neox\.layers\.0\.attention from 4 to 8"),
    ],
    ids=["heads", "depth", "head width", "heads of GPT-NeoX"],
)
def test_weights_of_a_source_are_not_put_into_another_model(tmp_path, config, changes, message):
    """Other heads of the same shapes were taken without a word."""
    causal_lm(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"^student\.config: {message}"):
        build(source=str(tmp_path), config=changes)
    assert build(source=str(tmp_path), config=changes, pretrained=False)(TOKENS).logits.isfinite().all()
    kept = {"attention_dropout" if config is not GPT2 else "attn_pdrop": 0.25}
    model = build(source=str(tmp_path), config=kept)
    assert torch.equal(model.eval()(TOKENS).logits, load(tmp_path)(TOKENS).logits)


def test_blocks_are_computed_again_by_a_library_that_has_the_new_name_alone(monkeypatch):
    """As transformers 6 is to be."""
    model, given = causal_lm(GPT2), []
    monkeypatch.setattr(model.network, "activation_checkpointing_enable", given.append, raising=False)
    monkeypatch.delattr(transformers.PreTrainedModel, "gradient_checkpointing_enable")
    model.enable_gradient_checkpointing()
    assert given == [{"use_reentrant": False}]


def test_rotary_frequencies_stay_exact_in_bfloat16(tmp_path):
    """As transformers has them: of a prompt's last tokens a teacher's logits would be others."""
    causal_lm(LLAMA).save_pretrained(tmp_path)
    whole, half = load(tmp_path), load(tmp_path, "bf16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    frequencies = {name: buffer for name, buffer in half.named_buffers() if name.endswith("inv_freq")}
    assert frequencies
    for name, buffer in whole.named_buffers():
        assert name not in frequencies or torch.equal(frequencies[name], buffer)


@pytest.mark.skipif(Version(transformers.__version__) < Version("5"), reason="it has no rope_parameters")
@pytest.mark.parametrize("pretrained", [True, False])
def test_rotary_positions_replace_those_of_a_folder_in_the_words_of_transformers_4(tmp_path, pretrained):
    """Most folders of the hub: their rope_theta was taken over the rope_parameters that were asked for."""
    causal_lm(LLAMA).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    values.pop("rope_parameters")
    file.write_text(json.dumps({**values, "rope_theta": 500000.0, "rope_scaling": None}))
    rope = {"rope_type": "default", "rope_theta": 7.0}
    thetas = [
        CausalLM.from_options(str(tmp_path), pretrained, config).network.config.rope_parameters["rope_theta"]
        for config in (None, {"rope_parameters": rope})
    ]
    assert thetas == [500000.0, 7.0]
