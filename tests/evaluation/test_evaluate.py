"""The evaluator from files to results.json, and every bad input it must refuse in one clear line."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluating import pictures, refused, run
from PIL import Image
from safetensors.torch import load_file, save_file

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.data.datasets.digits import DigitsDataset as MnistDigits
from dit_shd.data.image_sets import ArrayImages, NpzImages
from dit_shd.data.open_images import open_images
from dit_shd.evaluation.evaluate import EvaluateConfig
from dit_shd.evaluation.extraction import extract_features
from dit_shd.evaluation.features.digits import ASSET, DigitsFeatures
from dit_shd.evaluation.metrics import METRICS
from dit_shd.evaluation.scoring import score

NAMES = ("frechet", "inception_score", "kid", "precision_recall")
FIGURES = [
    "FD(digits)", "IS(digits)", "IS(digits) std", "KID(digits)", "KID(digits) std",
    "precision", "recall", "density", "coverage",
]  # fmt: skip


# What comes out


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


def test_score_gives_the_same_figures_and_takes_a_prepared_reference(files):
    samples, reference = pictures(40, seed=1), pictures(50, seed=2)
    record = run(files)
    network = DigitsFeatures()
    direct = score(samples, reference, network)
    prepared = extract_features(network, ArrayImages(reference, "reference"))
    assert direct == pytest.approx(record["figures"], rel=1e-9)
    assert score(torch.from_numpy(samples), prepared, network) == pytest.approx(direct, rel=1e-9)
    assert list(score(samples, prepared, network, ["frechet"])) == ["FD(digits)"]


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


def sorted_digits() -> tuple[np.ndarray, np.ndarray]:
    """Real digits, 500 in all, class by class."""
    data = MnistDigits("validation")
    order = np.argsort(data.labels(), kind="stable")
    return data.images()[order], data.labels()[order]


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


def test_scores_of_sorted_samples_are_warned_of_in_python(caplog):
    images, labels = sorted_digits()
    many, network = np.concatenate([images] * 11), DigitsFeatures()
    order = np.argsort(np.concatenate([labels] * 11), kind="stable")
    score(many[order], images, network, ["inception_score"])
    assert "because the samples are sorted" in caplog.text


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
    assert record["intervals"].keys() == {name for name in FIGURES if not name.endswith("std")} - {"recall"}
    assert record["resamples"] == 10
    low, high = (record["intervals"]["FD(digits)"][end] for end in ("low", "high"))
    assert low < record["figures"]["FD(digits)"] < high
    assert f"{low:.4f} to {high:.4f}" in capsys.readouterr().out
    assert "at least 10" in refused(files, resamples=3, force=True)
    assert "holds another result" in refused(files)


# Several files of samples


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


def test_seeds_count_up_from_the_one_file_that_is_named(files, seeds):
    record = run(files, samples=seeds[0], seeds=3)
    assert [run["samples"]["path"] for run in record["runs"]] == seeds
    assert "wanted one file with seedN in its path" in refused(files, seeds=3)
    assert "wanted one file with seedN in its path" in refused(files, samples=seeds[0], seeds=0)
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


# Results are not lost


def retrained(files: dict[str, Path]) -> Path:
    """Other weights of the digits network."""
    file = files["folder"] / "other.safetensors"
    save_file({key: value * 1.01 for key, value in load_file(ASSET).items()}, file)
    return file


def records(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.glob("*.json")}


def test_a_second_evaluation_in_a_folder_has_a_name_of_its_own(files):
    """Other samples, another reference, another network, several files; and each finds its own file again."""
    folder, other = files["samples"].parent, files["samples"].with_name("other.npz")
    np.savez(other, pictures(40, seed=9))
    np.savez(files["folder"] / "reference_2.npz", pictures(50, seed=8))
    evaluations = [
        {},
        {"samples": str(other)},
        {"reference": str(files["folder"] / "reference_2.npz")},
        {"reference": str(files["reference"]), "features": {"name": "digits", "weights": str(retrained(files))}},
        {"samples": [str(files["samples"]), str(other)]},
    ]
    seen, figures = {}, []
    for values in evaluations:
        figures.append(run(files, **values)["figures"])
        for name, text in seen.items():
            assert (folder / name).read_text() == text, "a record was touched"
        seen = records(folder)
    names = set(seen)
    assert {"results.json", "other.results.json", "set.results.json", "set_and_1_more.results.json"} <= names
    assert len(names) == 4 + 2  # two more of set.npz: of the other network, and as one of two files
    for values, found in zip(evaluations, figures):
        assert run(files, **values)["figures"] == pytest.approx(found)
    assert set(records(folder)) == names
    assert {file.with_suffix(".html").name for file in folder.glob("*.json")} <= {f.name for f in folder.iterdir()}


def test_a_result_of_something_else_in_the_way_gets_company(files):
    out = files["samples"].parent / "results.json"
    about = {"sha256": ""}
    bare = json.dumps({"samples": about, "reference": about, "features": about, "metrics": [], "figures": {}})
    for text in ('{"of": "another program"}', bare):
        out.write_text(text)
        run(files)
        assert out.read_text() == text
    assert json.loads((files["samples"].parent / "set.results.json").read_text())["samples"]["n"] == 40


def test_an_evaluation_that_came_in_between_is_not_lost(files, monkeypatch):
    """Two start in an empty folder; the one that ends later has a name of its own."""
    other = files["samples"].with_name("other.npz")
    np.savez(other, pictures(40, seed=9))
    extract, nested = DigitsFeatures.extract, []

    def slow(self, images):
        if not nested:
            nested.append(1)
            run(files, samples=str(other))
        return extract(self, images)

    monkeypatch.setattr(DigitsFeatures, "extract", slow)
    run(files)
    assert {n: json.loads(t)["samples"]["path"] for n, t in records(files["samples"].parent).items()} == {
        "results.json": str(other),
        "set.results.json": str(files["samples"]),
    }


def test_another_result_is_never_overwritten_without_force(files):
    run(files)
    out = files["samples"].parent / "results.json"
    kept = out.read_text()
    assert run(files)["figures"] == pytest.approx(json.loads(kept)["figures"])  # the same again is fine
    kept = out.read_text()
    np.savez(files["samples"], pictures(40, seed=9))
    assert "holds another result" in refused(files)
    assert out.read_text() == kept
    run(files, force=True)
    assert out.read_text() != kept


@pytest.mark.parametrize("content", ['{"figures": {}}', "not json", "[]"])
def test_a_file_that_is_no_result_is_not_overwritten(files, content):
    out = files["folder"] / "other.json"
    out.write_text(content)
    assert "holds another result" in refused(files, out=str(out))
    assert out.read_text() == content


def test_other_figures_of_the_same_inputs_are_not_overwritten(files):
    run(files)
    out = files["samples"].parent / "results.json"
    changed = json.loads(out.read_text())
    changed["figures"]["precision"] += 0.01
    out.write_text(json.dumps(changed))
    assert "holds another result" in refused(files)


def test_a_full_disk_is_one_line_and_the_figures_were_said(files, capsys):
    part = files["samples"].parent / f".results.json.{os.getpid()}.part"
    part.symlink_to("/dev/full")
    assert "results.json: cannot be written: the disk is full; make room" in refused(files)
    assert "FD(digits)" in capsys.readouterr().out
    assert not part.is_symlink()


def test_an_impossible_output_path_is_refused_before_the_network_runs(files, monkeypatch):
    monkeypatch.setattr(DigitsFeatures, "extract", lambda *_: pytest.fail("the network ran"))
    assert "found a folder" in refused(files, out=str(files["folder"]))
    assert "wanted a path in a folder" in refused(files, out=str(files["reference"] / "below" / "r.json"))


def test_too_few_images_for_a_metric(files):
    np.savez(files["samples"], pictures(3, seed=1))
    assert "wanted at least 6 images, found 3" in refused(files, metrics=["frechet", "precision_recall"])
    record = run(files)  # not asked for by name: left out, and said so
    assert "precision" not in record["figures"]
    assert any("precision_recall left out" in note for note in record["notes"])
    np.savez(files["samples"], pictures(1, seed=1))
    assert "wanted at least one that applies" in refused(files)


def test_nonsense_options_are_refused(files):
    assert "batch_size" in refused(files, batch_size=0)
    assert "did you mean 'frechet'" in refused(files, metrics=["frechett"])
    assert "did you mean 'digits'" in refused(files, features="digit")
    assert "an empty list" in refused(files, metrics=[])
    assert "device" in refused(files, device="abacus")
    assert "unknown key 'kk'" in refused(files, metrics=[{"name": "precision_recall", "kk": 3}])
    with pytest.raises(UserError, match=r"reference: a value is needed"):
        make(EvaluateConfig, {"samples": "x.npz"})


def test_score_refuses_features_of_another_network():
    network = DigitsFeatures()
    prepared = extract_features(network, ArrayImages(pictures(9, 0), "x"))
    network.title = "other"
    with pytest.raises(UserError, match="extract both with one network"):
        score(pictures(9, 0), prepared, network)


def test_the_default_network_is_the_one_of_fid():
    assert make(EvaluateConfig, {"samples": "a", "reference": "b"}).features == Plugin("inception")
