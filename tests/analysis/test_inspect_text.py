"""The attention of a language model over a text: figures against whole maps, and the folder that is left."""

import json
import re

import numpy as np
import pytest
import torch
import yaml
from language import GPT2, LLAMA, causal_lm, lines

from dit_shd.analysis.inspect_text import inspect_text, pictured_heads, text_of
from dit_shd.analysis.survey import Scope
from dit_shd.analysis.text_inputs import TextInputs
from dit_shd.attention.recording.attach import capture
from dit_shd.cli.program import main
from dit_shd.core import rng
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.data.datasets import DATASETS
from dit_shd.reports.text_inspection_page import short_names
from dit_shd.squeezing.squeeze import squeeze


def text(folder, **options):
    return DATASETS.build(
        Plugin("text", {"path": lines(folder), "document": "line", "length": 20, "split": "all", **options})
    )


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=lambda config: config["model_type"])
def test_figures_are_those_of_whole_maps_without_padding(tmp_path, config, pack):
    """Each document by itself through the model: the same maps, cosines of heads, and alpha."""
    model, data = causal_lm(config), text(tmp_path, pack=pack, length=31)
    findings = inspect_text(model, data, 5, 0, Scope(), 2)
    assert len(findings.inputs.sequences) == 5 and len(findings.layers) == 2
    products = torch.zeros(4, 4, dtype=torch.float64)
    for i, (sequence, places) in enumerate(zip(findings.inputs.sequences, findings.inputs.places)):
        with torch.no_grad(), capture(model) as captures:
            model(input_ids=sequence[None], position_ids=places[None], use_cache=False)
        layer = captures[findings.layers[0].layer]
        if pack and int((places == 0).sum()) > 1:  # no key of another document
            begin = int((places == 0).nonzero()[1])
            assert float(layer.map()[0, :, begin:, :begin].max()) == 0
        found = findings.layers[0]
        torch.testing.assert_close(torch.from_numpy(found.alpha[0, i]), squeeze(layer, 2).alpha[0].double())
        flat = layer.map()[0].double().flatten(1)
        products += flat @ flat.T
        if i == 0:
            rows = torch.from_numpy(findings.maps[found.layer].rows)  # [n,h,m]
            torch.testing.assert_close(rows, layer.map()[0].transpose(0, 1).double()[: len(rows), :, : len(rows)])
            assert "".join(findings.labels).startswith(data.tokenizer.text(int(sequence[0])))
    norms = products.diagonal().sqrt()
    torch.testing.assert_close(torch.from_numpy(found.cosines), products / norms[:, None] / norms, atol=1e-5, rtol=0)


def test_the_same_seed_draws_the_same_sequences(tmp_path):
    data = text(tmp_path)
    one, again, other = (TextInputs.of(data, 4, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.sequences, again.sequences))
    assert not all(torch.equal(a, b) for a, b in zip(one.sequences, other.sequences))
    assert one.labels[0] == "<|endoftext|>" or len(one.labels[0]) == 1
    assert len(one.first_tokens(3).sequences[0]) == len(one.first_tokens(3).labels) == 3


@pytest.mark.parametrize(("count", "heads"), [(25, [0, 12, 24]), (4, [0, 2, 3]), (2, [0, 1]), (1, [0])])
def test_three_heads_are_evenly_spread(count, heads):
    assert pictured_heads(count) == heads
    assert pictured_heads(count, [0]) == [0]
    with pytest.raises(UserError, match=f"shown_heads: wanted 0 to {count - 1}, found {count}"):
        pictured_heads(count, [count])


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["network.transformer.h.0.attn", "network.transformer.h.11.attn"], ["h.0", "h.11"]),
        (["model.layers.0.self_attn", "model.layers.1.self_attn"], ["layers.0", "layers.1"]),
        (["encoder.0.attn", "decoder.0.attn"], ["encoder", "decoder"]),
        (["attn", "mlp.attn"], ["attn", "mlp.attn"]),
        (["a.attn"], ["a.attn"]),
    ],
)
def test_names_of_layers_without_what_all_have(names, short):
    assert list(short_names(names).values()) == short


def test_the_command_leaves_a_page_and_its_numbers(tmp_path, capsys):
    path = lines(tmp_path)
    causal_lm(GPT2).save_pretrained(tmp_path / "run" / "student")
    data = {"name": "text", "path": path, "document": "line", "length": 16, "tokenizer": "bytes"}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"data": data, "task": "language_modeling"}))
    out = tmp_path / "out"
    words = ["inspect", str(tmp_path / "run"), "samples=3", f"out={out}", "shown=[-1]", "shown_heads=[0, 3]"]
    assert main(words) == 0
    numbers, page = json.loads((out / "numbers.json").read_text()), (out / "index.html").read_text()
    assert list(numbers["layers"]) == ["network.transformer.h.0.attn", "network.transformer.h.1.attn"]
    assert {len(layer["alpha_mean"]) for layer in numbers["layers"].values()} == {2}
    assert "GPT2LMHeadModel, analysed for merging its heads" in page and "3 sequences of the text" in page
    assert "matched plan" in re.search(r'<p class="finding">(.*?)</p>', page)[1]
    assert "<span>h.0</span>" in page and "<span>h.1</span>" in page, "layers without what all are called"
    figure = (out / "maps_network_transformer_h_1_attn.svg").read_text()
    assert re.findall(r">head (\d)<", figure) == ["0", "3"]
    assert not (out / "maps_network_transformer_h_0_attn.svg").exists()
    assert {"similarity.svg", "alpha_layers.svg"} <= set(numbers["files"])
    assert sorted(numbers["files"]) == sorted(file.name for file in out.iterdir())
    assert main(words) == 2
    assert "exists already; say force=true" in capsys.readouterr().err


def test_keys_that_nothing_reads_and_texts_without_attention_are_refused(tmp_path, capsys):
    causal_lm(GPT2).save_pretrained(tmp_path / "student")
    assert main(["inspect", str(tmp_path / "student"), "timesteps=[5]", f"out={tmp_path / 'out'}"]) == 2
    assert "timesteps: of a language model only model, layers, seed" in capsys.readouterr().err
    data = text(tmp_path, pack=False)
    batch = data.batch(np.arange(2), rng.Draws(0, 0, range(2), 2))
    batch["documents"][:, 1:] = -1  # one token, then padding
    data.batch = lambda *_: batch
    with pytest.raises(UserError, match="text: wanted sequences of two tokens or more, found none among the 2 drawn"):
        TextInputs.of(data, 2, 0)


def test_a_language_model_wants_a_text(tmp_path):
    with pytest.raises(UserError, match=r"data: gpt2 is a language model; wanted a text, .* found none"):
        text_of(None, {}, "gpt2")
    with pytest.raises(UserError, match="gpt2 is a language model; wanted a text, found digits"):
        text_of(Plugin("digits"), {}, "gpt2")
    run = {"data": {"name": "text", "path": lines(tmp_path), "document": "line", "tokenizer": "bytes"}}
    assert text_of(None, run, "gpt2").split == "validation"
