"""dit-shd perplexity: the figures of models on the text that their runs held out, and what is refused."""

import json
import math

import pytest
import yaml
from language import GPT2, LLAMA, causal_lm, lines

from dit_shd.analysis.perplexities import PerplexityConfig, named, over_seeds, perplexities
from dit_shd.cli.commands.perplexity import perplexity_table
from dit_shd.cli.program import main
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.data.datasets import DATASETS
from dit_shd.evaluation.perplexity import Perplexity
from dit_shd.tasks.language_modeling import LanguageModeling

DATA = {"name": "text", "document": "line", "length": 16, "held_out": 0.3}


def run_of(folder, config, seed, **data):
    """A run folder as training leaves it, as far as it is read."""
    causal_lm(config, seed).save_pretrained(folder / "student")
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"data": {**DATA, **data}, "task": {"name": "language_modeling"}})
    )
    return str(folder)


def test_models_are_measured_on_what_their_runs_held_out(tmp_path, capsys):
    path = lines(tmp_path)
    runs = [run_of(tmp_path / f"small_seed{seed}", GPT2, seed, path=path) for seed in (0, 1)]
    runs.append(run_of(tmp_path / "other", LLAMA, 0, path=path))
    assert main(["perplexity", *runs, f"out={tmp_path / 'out.json'}"]) == 0
    table, found = capsys.readouterr().out.splitlines(), json.loads((tmp_path / "out.json").read_text())
    assert list(found) == ["small_seed0", "small_seed1", "other"]
    task, options = LanguageModeling(), {k: v for k, v in DATA.items() if k != "name"}
    data = DATASETS.build(Plugin("text", {**options, "path": path, "split": "validation"}))
    task.use(data, None)
    for name, (config, seed) in zip(found, [(GPT2, 0), (GPT2, 1), (LLAMA, 0)]):
        assert found[name] == pytest.approx(task.perplexity(causal_lm(config, seed), data))
        assert any(line.startswith(name) and f"{found[name]['perplexity']:.3f}" in line for line in table)
    mean = sum(found[name]["nats"] for name in list(found)[:2]) / 2
    (line,) = (line for line in table if line.startswith("small (2 seeds)"))
    assert f"{mean:.4f} ± " in line and not any(line.startswith("other (") for line in table)


def test_what_is_cut_of_long_documents_is_told_once(tmp_path, caplog):
    path = lines(tmp_path)
    runs = [run_of(tmp_path / name, GPT2, 0, path=path, pack=False, length=6) for name in ("one", "other")]
    perplexities(PerplexityConfig(runs))
    assert caplog.text.count("tokens are beyond data.length=6 of their documents and not seen") == 1


@pytest.mark.parametrize("split", ["all", "validation", "test"])
def test_a_run_that_learned_all_of_its_text_held_out_nothing(tmp_path, split, capsys):
    run = run_of(tmp_path / "run", GPT2, 0, path=lines(tmp_path), split=split)
    assert main(["perplexity", run]) == 2
    assert f"learned from split={split}, so it held out nothing; say data=" in capsys.readouterr().err


def test_a_models_own_tokenizer_is_taken_and_another_refused(tmp_path, capsys):
    path, vocabulary = lines(tmp_path), {"tokenizer": str(tmp_path / "bpe.json"), "vocabulary": 300}
    run = run_of(tmp_path / "run", {**GPT2, "vocab_size": 300}, 0, path=path, **vocabulary)
    plugin = Plugin("text", {k: v for k, v in {**DATA, **vocabulary, "path": path}.items() if k != "name"})
    DATASETS.build(plugin).tokenizer.save_pretrained(tmp_path / "run" / "student")
    text = f"data={{name: text, path: {path}, document: line, length: 16, held_out: 0.3, split: validation"
    figures = []
    for data in ([], [text + "}"]):
        out = tmp_path / f"{len(data)}.json"
        assert main(["perplexity", run, f"out={out}", *data]) == 0
        figures.append(json.loads(out.read_text())["run"]["nats"])
    assert figures[0] == figures[1]
    (tmp_path / "bpe.json").unlink()
    DATASETS.build(Plugin("text", {**plugin.options, "path": path, "by": "position"}))  # of another text
    assert main(["perplexity", run]) == 2
    assert "has a tokenizer of its own (token" in capsys.readouterr().err
    assert main(["perplexity", run, text + ", tokenizer: bytes}"]) == 2
    assert "has a tokenizer of its own (token" in capsys.readouterr().err


def test_a_model_without_a_tokenizer_is_read_as_bytes_which_is_said(tmp_path, caplog):
    """A folder of the hub whose tokenizer is of sentencepiece alone had a figure over bytes, without a word."""
    causal_lm(GPT2).save_pretrained(tmp_path / "model")
    text = f"data={{name: text, path: {lines(tmp_path)}, document: line, length: 16, split: all}}"
    assert main(["perplexity", str(tmp_path / "model"), text]) == 0
    assert "model has no tokenizer.json, so the text is read as bytes" in caplog.text
    caplog.clear()
    assert main(["perplexity", str(tmp_path / "model"), text.replace("split", "tokenizer: bytes, split")]) == 0
    assert "bytes" not in caplog.text


def test_documents_are_kept_apart_as_the_run_had_them(tmp_path):
    run = run_of(tmp_path / "run", GPT2, 0, path=lines(tmp_path))
    together = run_of(tmp_path / "together", GPT2, 0, path=lines(tmp_path))
    config = yaml.safe_load((tmp_path / "together" / "config.yaml").read_text())
    config["task"]["separate"] = False
    (tmp_path / "together" / "config.yaml").write_text(yaml.safe_dump(config))
    (apart,), (joined,) = (perplexities(make(PerplexityConfig, {"models": [m]})).values() for m in (run, together))
    assert apart["nats"] != joined["nats"]
    both = {"models": [together, run]}
    assert [*perplexities(make(PerplexityConfig, {**both, "separate": True})).values()] == [apart] * 2
    with pytest.raises(UserError, match=f"are kept apart of {run} and not of {together}, as their runs"):
        perplexities(make(PerplexityConfig, both))


def test_two_models_of_one_name_are_two_rows(tmp_path, capsys):
    """As cells/output-seed0/run and cells/shd-seed0/run of a study, or the students of two runs."""
    path = lines(tmp_path)
    for seed, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        run_of(tmp_path / name / "run", GPT2, seed, path=path)
    runs = [str(tmp_path / name / "run") for name in "ab"]
    assert main(["perplexity", runs[0], f"{runs[1]}/", f"out={tmp_path / 'out.json'}"]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found) == runs and found[runs[0]] != found[runs[1]]
    assert list(named([runs[0], str(tmp_path / "a")])) == ["run", "a"]


@pytest.mark.parametrize(
    ("places", "names", "groups"),
    [
        (["kd/seed0", "shd/seed1"], ["kd/seed0", "shd/seed1"], ["kd", "shd"]),
        (["kd/seed0", "kd/seed1"], ["kd/seed0", "kd/seed1"], ["kd"]),
        (["kd/run_seed0", "shd/run_seed1"], ["kd/run_seed0", "shd/run_seed1"], ["kd/run", "shd/run"]),
        (["kd/run_seed0", "kd/run_seed1", "b"], ["run_seed0", "run_seed1", "b"], ["run", "b"]),
    ],
)
def test_seeds_of_one_run_are_in_one_folder(tmp_path, monkeypatch, places, names, groups):
    monkeypatch.chdir(tmp_path)
    for place in places:
        (tmp_path / place).mkdir(parents=True)
    found = named(places)
    assert (list(found), list(found.values())) == (names, places)
    assert list(over_seeds({name: {"nats": 1.0} for name in found})) == groups


def test_a_folder_for_the_figures_is_made_before_hours_of_work(tmp_path, monkeypatch):
    path = lines(tmp_path)
    run_of(tmp_path / "run", GPT2, 0, path=path)
    out = tmp_path / "new" / "figures.json"
    assert main(["perplexity", str(tmp_path / "run"), f"out={out}"]) == 0
    assert json.loads(out.read_text())["run"]["perplexity"] > 0


def test_spread_is_the_standard_deviation():
    figures = {f"a_seed{i}": {"nats": float(i)} for i in range(3)} | {"b": {"nats": 4.0}}
    summary = over_seeds(figures)
    assert summary["a"] == (3, {"nats": 1.0}, {"nats": 1.0})
    assert summary["b"] == (1, {"nats": 4.0}, {})
    assert math.isclose(summary["a"][2]["nats"], 1.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "{other}"], "are of runs on other data or other splits of it"),
        (["{run}/student/nothing"], "found nothing at"),
        (["{bare}"], "data: wanted the text to measure on, found none"),
        (["{run}", "data=digits"], "data: wanted text, found images, labels, latents"),
        (
            ["{run}", "data={{name: text, path: {path}, length: 16, document: line}}"],
            "data: wanted its split, found none",
        ),
        (["{run}", "out={run}/config.yaml"], "is there already"),
        (["{run}", "data={{name: text, path: {path}, length: 64, split: all, document: line}}"], "takes 32 tokens"),
    ],
)
def test_refusals(tmp_path, capsys, words, message):
    path = lines(tmp_path)
    places = {
        "run": run_of(tmp_path / "run", GPT2, 0, path=path),
        "other": run_of(tmp_path / "other", GPT2, 0, path=path, held_out=0.5),
        "bare": str(tmp_path / "bare"),
        "path": path,
    }
    causal_lm(GPT2).save_pretrained(tmp_path / "bare")
    assert main(["perplexity", *(word.format(**places) for word in words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_model_that_has_diverged_is_told_in_few_letters():
    """It had a perplexity of e^700, and 305 digits of it."""
    measured = Perplexity()
    measured.nats, measured.tokens = 2_955_266.0 * 10, 10
    figures = measured.figures()
    assert figures["perplexity"] == math.inf and figures["nats"] == 2_955_266.0
    assert " inf " in perplexity_table({"bad": figures}) and "2.51e+08" in perplexity_table(
        {"bad": {**figures, "perplexity": 251_000_000.0}}
    )


def test_no_token_has_no_perplexity():
    """Of responses that were cut off, all of them, it was 1.0: the best there is."""
    with pytest.raises(UserError, match="wanted tokens to predict, found none"):
        Perplexity().figures()
