"""The evaluator from files to results.json, and every bad input it must refuse in one clear line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluating import pictures, refused, run, sorted_digits
from PIL import Image

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.data.image_sets import ArrayImages, NpzImages
from dit_shd.data.open_images import open_images
from dit_shd.evaluation.comparability import ONE_MODEL
from dit_shd.evaluation.evaluate import EvaluateConfig
from dit_shd.evaluation.extraction import extract_features
from dit_shd.evaluation.features.digits import DigitsFeatures
from dit_shd.evaluation.metrics import METRICS
from dit_shd.evaluation.scoring import score

NAMES = ("frechet", "inception_score", "kid", "precision_recall")


FIGURES = [
    "FD(digits)", "IS(digits)", "KID(digits)", "KID(digits) std",
    "precision", "recall", "density", "coverage",
]  # fmt: skip


def test_figures_are_those_of_the_metrics_on_the_features(files, capsys):
    record = run(files)
    samples, reference = (
        extract_features(DigitsFeatures(), ArrayImages(pictures(n, seed=seed), "x"), batch_size=n)
        for n, seed in ((40, 1), (50, 2))
    )
    expected = {}
    for name in NAMES:
        expected |= METRICS.find(name)().compute(samples, reference)
    assert list(expected) == FIGURES
    assert {k: record["figures"][k] for k in FIGURES} == pytest.approx(expected, rel=1e-4)
    assert expected["FD(digits)"] > 0.1
    out = capsys.readouterr().out
    assert "40 images" in out
    assert f"FD(digits)       {record['figures']['FD(digits)']:12.4f}" in out
    assert "not FID" in out


def test_the_record_says_what_was_measured_on_what(files):
    import hashlib

    files["samples"].with_suffix(".json").write_text('{"rounding": "floor", "labels": "equal"}')
    record = run(files)
    assert record == json.loads((files["samples"].parent / "results.json").read_text())
    assert record["samples"]["sha256"] == hashlib.sha256(files["samples"].read_bytes()).hexdigest()
    assert record["samples"]["sidecar"] == {"rounding": "floor", "labels": "equal"}
    assert record["samples"]["labels"] == {"classes": 10, "fewest": 4, "most": 4}
    assert record["samples"]["n"] == 40
    assert record["reference"]["n"] == 50
    assert record["reference"]["sha256"] == hashlib.sha256(files["reference"].read_bytes()).hexdigest()
    assert record["features"]["sha256"] == DigitsFeatures().sha256
    assert record["features"]["is_fid"] is False
    assert record["versions"]["torch"] == torch.__version__
    assert record["command"]
    assert not any("not recorded" in note for note in record["notes"])
    assert any("singular" in note for note in record["notes"])  # 40 images, 64 features


def test_figures_do_not_depend_on_the_batch_size(files):
    one, other = run(files, batch_size=7), run(files, batch_size=64, out=str(files["folder"] / "b.json"))
    assert one["figures"] == pytest.approx(other["figures"], rel=1e-5)


def test_features_stay_in_file_order(files):
    network, images = DigitsFeatures(), pictures(40, seed=1)
    expected = network.extract(torch.from_numpy(images))
    found = extract_features(network, NpzImages(files["samples"], "x"), batch_size=7)
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)


def test_an_npz_and_a_folder_of_the_same_images_agree(files):
    folder = files["folder"] / "pngs"
    folder.mkdir()
    for i, image in enumerate(pictures(40, seed=1)):
        Image.fromarray(image[..., 0]).save(folder / f"{i:03}.png")
    from_folder = run(files, samples=str(folder), out=str(files["folder"] / "folder.json"))
    assert from_folder["figures"] == pytest.approx(run(files)["figures"], rel=1e-9)


def test_chosen_metrics_take_options(files):
    record = run(files, metrics=[{"name": "precision_recall", "k": 5}])
    assert list(record["figures"]) == ["precision", "recall", "density", "coverage"]
    assert record["metrics"] == [{"name": "precision_recall", "k": 5, "density_k": 5, "block": 1024}]
    assert record["figures"]["recall"] >= score(pictures(40, 1), pictures(50, 2), DigitsFeatures())["recall"]


def test_a_dataset_of_ours_is_a_set_of_images():
    validation, everything = open_images("digits:validation", "samples"), open_images("digits:all", "samples")
    assert validation.shape == (500, 28, 28, 1)
    assert everything.shape == (5000, 28, 28, 1)
    assert validation.labels is not None
    assert validation.sha256() != everything.sha256()
    with pytest.raises(UserError, match=r"samples\.split"):
        open_images("digits:nowhere", "samples")


CHUNKED = [{"name": "inception_score", "chunk": 100}]


@pytest.mark.parametrize("kind", ["labels", "one-hot", "no labels", "folder", "names", "shuffled"])
def test_samples_sorted_by_class_are_found_out(files, kind):
    """By labels or, where there are none, by figures: the score over the file's order and over a shuffled copy."""
    images, labels = sorted_digits()
    chance = np.random.default_rng(0).permutation(500)
    given = {"labels": [labels], "one-hot": [np.eye(10)[labels]], "no labels": [], "shuffled": [labels[chance]]}
    samples = files["samples"]
    if kind in given:
        np.savez(samples, images[chance] if kind == "shuffled" else images, *given[kind])
    else:
        samples = files["folder"] / "pngs"
        for i in chance:
            name = f"{labels[i]}/{i:03}.png" if kind == "folder" else f"{labels[i]}_{i:03}.png"
            (samples / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[i, ..., 0]).save(samples / name)
    record = run(files, samples=str(samples), metrics=CHUNKED, page=False)
    why_not = " ".join(record["adm_comparable"]["why_not"])
    assert ("sorted by class, not in random order" in why_not) == (kind in ("labels", "one-hot"))
    assert ("because the samples are sorted" in why_not) == (kind != "shuffled")
    if kind != "shuffled":
        shuffled = score(images[chance], pictures(50, seed=2), DigitsFeatures(), ["inception_score"])["IS(digits)"]
        in_order, told = (float(text) for text in re.findall(r"\d+\.\d+", why_not))
        assert in_order == pytest.approx(record["figures"]["IS(digits)"], abs=1e-3)
        assert in_order < 0.5 * told < 0.5 * shuffled  # 100 images have not all of p(y), 500 have
        assert told > 0.9 * shuffled


def test_sorted_samples_of_one_chunk_are_as_good_as_others(files):
    images, labels = sorted_digits()
    np.savez(files["samples"], images, labels)
    assert "sorted" not in " ".join(run(files, metrics=["inception_score"])["adm_comparable"]["why_not"])


def test_several_files_are_judged_by_their_figures_too(files, seeds):
    images, _ = sorted_digits()
    for seed, path in enumerate(seeds[:2]):
        np.savez(path, images[::-1] if seed else images)
    whole = run(files, samples=seeds[:2], metrics=CHUNKED, page=False)
    assert sum("because the samples are sorted" in reason for reason in whole["adm_comparable"]["why_not"]) in (1, 2)
    assert whole["adm_comparable"]["yes"] is False


def test_only_the_real_inception_weights_give_fid(files, monkeypatch):
    monkeypatch.setattr(DigitsFeatures, "is_fid", True)
    monkeypatch.setattr(DigitsFeatures, "title", "inception-2015")
    record = run(files)
    assert list(record["figures"]) == [name.replace("FD", "FID").replace("(digits)", "") for name in FIGURES]
    assert any("published FID is of 50,000" in note for note in record["notes"])


def test_the_verdict_is_recorded_and_printed(files, capsys):
    verdict = run(files)["adm_comparable"]
    assert verdict["yes"] is False
    assert "40 samples, not 50,000" in verdict["why_not"]
    assert "ADM-comparable: no: features digits are not the 2015 Inception; 40" in capsys.readouterr().out


def test_intervals_come_with_resamples(files, capsys):
    record = run(files, resamples=10)
    assert record["intervals"].keys() == {name for name in FIGURES if not name.endswith("std")} - {"recall", "coverage"}
    assert record["resamples"] == 10
    low, high = (record["intervals"]["FD(digits)"][end] for end in ("low", "high"))
    assert low < record["figures"]["FD(digits)"] < high
    assert f"{low:.4f} to {high:.4f}" in capsys.readouterr().out
    assert "at least 10" in refused(files, resamples=3, force=True)
    assert "holds another result" in refused(files)


@pytest.fixture
def seeds(files) -> list[str]:
    paths = [files["folder"] / "runs" / f"set_seed{seed}.npz" for seed in range(3)]
    paths[0].parent.mkdir()
    for seed, path in enumerate(paths):
        np.savez(path, pictures(40, seed=10 + seed))
    return [str(path) for path in paths]


def test_several_files_give_mean_and_spread(files, seeds):
    whole = run(files, samples=seeds)
    each = [score(pictures(40, seed=10 + seed), pictures(50, seed=2), DigitsFeatures()) for seed in range(3)]
    for name in FIGURES:
        if not name.endswith(" std"):
            values = [figures[name] for figures in each]
            assert whole["figures"][name] == pytest.approx(np.mean(values), rel=1e-6)
            assert whole["spread"][name] == pytest.approx(np.std(values, ddof=1), rel=1e-5, abs=1e-12)
    assert [run["samples"]["path"] for run in whole["runs"]] == seeds
    assert whole == json.loads((files["folder"] / "runs" / "results.json").read_text())
    assert whole["spread"]["FD(digits)"] > 0


def test_several_files_that_were_sampled_differently_are_noted(files, seeds):
    settings = {
        "steps": 50,
        "guidance": 2.0,
        "guidance_schedule": "constant",
        "labels": "balanced",
        "rounding": "nearest",
    }
    for seed, path in enumerate(seeds):
        Path(path).with_suffix(".json").write_text(json.dumps({**settings, "seed": seed}))
    assert not [note for note in run(files, samples=seeds, metrics=["frechet"])["notes"] if "different" in note]
    Path(seeds[1]).with_suffix(".json").write_text(json.dumps({**settings, "guidance": 1.5}))
    notes = run(files, samples=seeds, metrics=["frechet"], force=True)["notes"]
    assert f"sampled with different guidance: {seeds[0]} 2.0, {seeds[1]} 1.5, {seeds[2]} 2.0" in notes


def test_files_of_one_model_have_no_spread_over_training(files, seeds):
    for models, one in ((["a", "a", "a"], True), (["a", "b", "a"], False), ([None, None, None], False)):
        for path, sha256 in zip(seeds, models):
            Path(path).with_suffix(".json").write_text(json.dumps({"model_sha256": sha256} if sha256 else {}))
        assert (ONE_MODEL in run(files, samples=seeds, metrics=["frechet"], force=True)["notes"]) == one


def test_settings_that_are_no_json_by_its_letter_are_recorded(files):
    """Python writes NaN and Infinity, and reads them; the whole evaluation ran, and nothing was written."""
    files["samples"].with_suffix(".json").write_text(
        '{"loss": NaN, "churn": {"high": Infinity, "steps": [18, -1e999]}}'
    )
    run(files, page=False)
    record = files["samples"].with_name("results.json").read_text()
    known = json.loads(record, parse_constant=pytest.fail)["samples"]["sidecar"]
    assert known == {"loss": "nan", "churn": {"high": "inf", "steps": [18, "-inf"]}}


def test_seeds_count_up_from_the_one_file_that_is_named(files, seeds):
    record = run(files, samples=seeds[0], seeds=3)
    assert [run["samples"]["path"] for run in record["runs"]] == seeds
    assert "wanted one file with seedN in its path" in refused(files, seeds=3)
    assert "seeds: wanted 1 or more, found 0" in refused(files, samples=seeds[0], seeds=0)
    assert "found nothing at" in refused(files, samples=seeds[0], seeds=4)


def test_finished_files_are_not_evaluated_again(files, seeds, capsys, monkeypatch):
    run(files, samples=seeds[:2], out=str(files["folder"] / "two.json"))
    monkeypatch.setattr(DigitsFeatures, "extract", lambda *_: pytest.fail("the network ran"))
    again = run(files, samples=seeds[:2], out=str(files["folder"] / "again.json"))
    assert capsys.readouterr().out.count("evaluated before, reused") == 2
    assert again["figures"] == json.loads((files["folder"] / "two.json").read_text())["figures"]


def test_a_broken_last_file_costs_nothing(files, seeds, monkeypatch):
    Path(seeds[2]).write_bytes(b"half")
    monkeypatch.setattr(DigitsFeatures, "extract", lambda *_: pytest.fail("the network ran"))
    assert "wanted an npz file written by numpy.savez, found text" in refused(files, samples=seeds)


def test_another_result_of_the_last_file_is_found_out_first(files, seeds, monkeypatch):
    run(files, samples=seeds[2], out=seeds[2].replace(".npz", ".results.json"), metrics=["frechet"])
    monkeypatch.setattr(DigitsFeatures, "extract", lambda *_: pytest.fail("the network ran"))
    assert "set_seed2.results.json: holds another result" in refused(files, samples=seeds)


def test_files_that_cannot_make_a_mean_are_refused(files, seeds):
    np.savez(seeds[1], pictures(41, seed=1))
    assert "wanted as many images of one size in every file" in refused(files, samples=seeds)
    np.savez(seeds[1], pictures(40, seed=10))
    assert "found the same in" in refused(files, samples=seeds)
    assert "wanted at least one file" in refused(files, samples=[])


def test_too_few_images_for_a_metric(files):
    np.savez(files["samples"], pictures(3, seed=1))
    assert "wanted at least 6 images, found 3" in refused(files, metrics=["frechet", "precision_recall"])
    record = run(files)  # not asked for by name: left out, and said so
    assert "precision" not in record["figures"]
    assert any("precision_recall left out" in note for note in record["notes"])
    np.savez(files["samples"], pictures(1, seed=1))
    assert "wanted at least one that applies" in refused(files)


@pytest.mark.parametrize("metric", ["cmmd", "clip_score"])
def test_a_metric_of_pictures_and_text_wants_such_a_network(files, metric):
    assert "wanted a network that reads text, found digits" in refused(files, metrics=[metric])


def test_nonsense_options_are_refused(files):
    assert "batch_size" in refused(files, batch_size=0)
    assert "did you mean 'frechet'" in refused(files, metrics=["frechett"])
    assert "did you mean 'frechet'" in refused(files, metrics=["FID"]), "kid is nearer in letters"
    assert "did you mean 'digits'" in refused(files, features="digit")
    assert "an empty list" in refused(files, metrics=[])
    assert "device" in refused(files, device="abacus")
    assert "unknown key 'kk'" in refused(files, metrics=[{"name": "precision_recall", "kk": 3}])
    with pytest.raises(UserError, match=r"reference: a value is needed"):
        make(EvaluateConfig, {"samples": "x.npz"})


def test_the_default_network_is_the_one_of_fid():
    assert make(EvaluateConfig, {"samples": "a", "reference": "b"}).features == Plugin("inception")
