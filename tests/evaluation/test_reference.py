"""References: statistics files written and read, and what may not be compared."""

import os
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluating import pictures, refused, run
from pages import words_of
from PIL import Image
from safetensors.torch import load_file, save_file

from dit_shd.cli.program import main
from dit_shd.core import plugins
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.hashing import sha256
from dit_shd.data.image_sets import ArrayImages, spread
from dit_shd.evaluation.extraction import extract_features
from dit_shd.evaluation.features.digits import ASSET, DigitsFeatures
from dit_shd.evaluation.reference import open_reference
from dit_shd.evaluation.reference_statistics import StatisticsConfig, write_reference_statistics
from dit_shd.evaluation.results import evaluator_difference, read_record, table
from dit_shd.evaluation.scoring import score

# References of statistics


def write_statistics(path: Path, images: np.ndarray, **extra) -> None:
    features = extract_features(DigitsFeatures(), ArrayImages(images, "x"))
    known = features.statistics
    np.savez(path, mu=known.mean.numpy(), sigma=known.covariance.numpy(), n=known.n, **extra)


def test_statistics_with_the_networks_hash_give_the_distance_of_the_images(files):
    images = pictures(200, seed=4)
    np.savez(files["reference"], images)
    expected = run(files)["figures"]["FD(digits)"]
    write_statistics(files["reference"], images, network_sha256=DigitsFeatures().sha256)
    record = run(files, force=True)
    assert record["figures"]["FD(digits)"] == pytest.approx(expected, rel=1e-6)
    assert "precision" not in record["figures"]
    assert any("precision_recall left out" in note for note in record["notes"])
    assert record["reference"]["statistics"]["n"] == 200
    assert "only statistics" in refused(files, metrics=["precision_recall"], force=True)


@pytest.mark.parametrize("dtype", [">f8", "<f4", np.longdouble])
def test_statistics_of_other_precisions_and_machines_are_read(files, dtype):
    write_statistics(files["reference"], pictures(200, seed=4), network_sha256=DigitsFeatures().sha256)
    expected = run(files)["figures"]["FD(digits)"]
    with np.load(files["reference"]) as stored:
        kept = {key: value.astype(dtype) if value.dtype == "f8" else value for key, value in stored.items()}
    np.savez(files["reference"], **kept)
    assert run(files, force=True)["figures"]["FD(digits)"] == pytest.approx(expected, rel=1e-5)


def test_statistics_win_over_the_images_beside_them_as_in_adms_file(files):
    shown, behind = pictures(50, seed=2), pictures(200, seed=4)
    alone = run(files)["figures"]
    write_statistics(files["reference"], behind, network_sha256=DigitsFeatures().sha256, arr_0=shown)
    both = run(files, force=True)["figures"]
    assert both["precision"] == alone["precision"]
    assert both["recall"] == alone["recall"]
    assert both["FD(digits)"] == pytest.approx(
        score(pictures(40, 1), behind, DigitsFeatures(), ["frechet"])["FD(digits)"], rel=1e-6
    )
    assert both["FD(digits)"] != pytest.approx(alone["FD(digits)"], rel=1e-3)


@pytest.mark.parametrize("extra", [{}, {"network_sha256": "0" * 64}])
def test_statistics_of_another_or_an_unnamed_network_are_refused(files, extra):
    write_statistics(files["reference"], pictures(60, seed=4), **extra)
    assert "wanted statistics of feature network digits" in refused(files)


@pytest.mark.parametrize(("extra", "noted"), [((), True), (("mu_s", "sigma_s"), False), (("network_sha256",), False)])
def test_statistics_that_do_not_say_what_they_are_of_have_a_note(tmp_path, extra, noted):
    """Of pytorch-fid and the like; ADM's, which alone have mu_s, and ours are known."""
    values = {"mu_s": np.zeros(5), "sigma_s": np.eye(5), "network_sha256": "0" * 64}
    np.savez(tmp_path / "r.npz", mu=np.zeros(4), sigma=np.eye(4), **{key: values[key] for key in extra})
    notes = open_reference(str(tmp_path / "r.npz"), "reference").notes
    assert any("do not say of which network, resizing" in note for note in notes) == noted


@pytest.mark.parametrize(
    ("mu", "sigma", "message"),
    [
        (np.zeros(64), -np.eye(64), "negative eigenvalues"),
        (np.zeros(64), np.diag(np.r_[np.ones(63), -1e-3]), "negative eigenvalues"),
        (np.zeros(64), np.triu(np.ones((64, 64))), "not symmetric"),
        (np.full(64, 1e200), np.eye(64), "found a value of 1e+200"),
        (np.zeros(64), 1e200 * np.eye(64), "found a value of 1e+200"),
        (np.zeros(64), np.eye(63), "wanted statistics"),
        (np.zeros((2, 64)), np.eye(64), "wanted statistics"),
        (np.zeros(64, dtype=int), np.eye(64), "wanted statistics"),
        (np.full(64, np.nan), np.eye(64), "finite"),
    ],
)
def test_broken_statistics_are_refused(files, mu, sigma, message):
    np.savez(files["reference"], mu=mu, sigma=sigma, network_sha256=DigitsFeatures().sha256)
    assert message in refused(files)


def test_sizes_that_the_file_says_are_checked(files):
    known = {"network_sha256": DigitsFeatures().sha256, "shape": np.array([32, 32, 1])}
    write_statistics(files["reference"], pictures(60, seed=4), **known)
    assert "wanted reference images like the samples, (y, x, c) = (28, 28, 1), found (32, 32, 1)" in refused(files)


@pytest.mark.parametrize(("extra", "message"), [({"n": -3}, "found n = -3"), ({"n": "many"}, "whole numbers")])
def test_other_broken_entries_are_refused(files, extra, message):
    np.savez(files["reference"], mu=np.zeros(64), sigma=np.eye(64), network_sha256=DigitsFeatures().sha256, **extra)
    assert message in refused(files)


# dit-shd statistics


def statistics(files, **values) -> Path:
    config = {"images": str(files["reference"]), "out": str(files["folder"] / "known.npz"), "features": "digits"}
    return write_reference_statistics(make(StatisticsConfig, {**config, "device": "cpu", **values}))


def test_statistics_of_a_crop_have_the_channels_of_the_network(files):
    """Gray pictures of 56 x 56 for a network of gray ones of 28 x 28: as evaluate crop=true takes them."""
    folder = files["folder"] / "gray"
    folder.mkdir()
    for i, image in enumerate(pictures(20, seed=5, shape=(56, 56, 1))):
        Image.fromarray(image[..., 0]).save(folder / f"{i:02}.png")
    known = statistics(files, images=str(folder), size=28)
    by_images = run(files, reference=str(folder), crop=True, metrics=["frechet"], page=False)
    by_statistics = run(files, reference=str(known), metrics=["frechet"], page=False, force=True)
    assert by_statistics["figures"]["FD(digits)"] == pytest.approx(by_images["figures"]["FD(digits)"], rel=1e-9)


def test_a_statistics_file_holds_what_the_images_give_and_what_they_are(files):
    images = pictures(50, seed=2)
    with np.load(statistics(files), allow_pickle=False) as file:
        pooled = DigitsFeatures().extract(torch.from_numpy(images)).pooled.double().numpy()
        np.testing.assert_allclose(file["mu"], pooled.mean(0), rtol=1e-5)
        np.testing.assert_allclose(file["sigma"], np.cov(pooled, rowvar=False), rtol=1e-4, atol=1e-6)
        assert "mu_s" not in file  # the digits network has no spatial features
        assert int(file["n"]) == 50
        assert str(file["network"]) == "digits"
        assert str(file["network_sha256"]) == DigitsFeatures().sha256
        assert file["shape"].tolist() == [28, 28, 1]
        assert str(file["source_sha256"]) == sha256(files["reference"])


def test_the_next_command_can_be_pasted(files, capsys):
    """Of a folder with a space, and of a network with options."""
    (files["folder"] / "a b").mkdir()
    out = files["folder"] / "a b" / "known.npz"
    weights = files["folder"] / "a b" / "other.safetensors"
    save_file({key: value * 1.01 for key, value in load_file(ASSET).items()}, weights)
    network = f"features={{name: digits, weights: {weights}}}"
    assert main(["statistics", str(files["reference"]), f"out={out}", network, "device=cpu"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    words = shlex.split(line.removeprefix("next: dit-shd ").replace("SAMPLES", str(files["samples"])))
    assert main([*words, "device=cpu"]) == 0
    record = read_record(files["samples"].parent / "results.json")
    assert record is not None and record["reference"]["path"] == str(out)


def test_a_statistics_file_is_a_reference(files):
    expected = run(files)["figures"]
    known = statistics(files)
    record = run(files, reference=str(known), force=True)
    assert record["figures"]["FD(digits)"] == pytest.approx(expected["FD(digits)"], rel=1e-6)
    assert "precision" not in record["figures"]
    assert record["reference"]["statistics"]["network"] == "digits"
    assert record["reference"]["statistics"]["source"] == str(files["reference"])


def test_images_that_are_kept_serve_precision_and_recall(files):
    known = statistics(files, keep_images=50)
    assert run(files, reference=str(known))["figures"] == pytest.approx(run(files, force=True)["figures"], rel=1e-6)
    with np.load(statistics(files, keep_images=10, force=True), allow_pickle=False) as file:
        np.testing.assert_array_equal(file["arr_0"], pictures(50, seed=2)[spread(50, 10)])


@pytest.mark.parametrize(("keep", "real"), [(50, 25), (10, None)])
def test_real_images_are_a_scale_only_where_all_are_there(files, keep, real):
    """Five kept ones against five others would stand beside a figure of the samples against all fifty."""
    record = run(files, reference=str(statistics(files, keep_images=keep)))
    assert (record["real"] and record["real"]["n"]) == real
    page = (files["samples"].parent / "results.html").read_text(encoding="utf-8")
    assert ("reference images score" in words_of(page)) == (real is not None)


def test_statistics_with_spatial_features_give_sfid(files, monkeypatch):
    """A small network with spatial features stands for Inception, whose own are tested with it."""
    monkeypatch.setattr(plugins, "_trusted", {"evaluating"})
    known = statistics(files, features="evaluating.Spatial")
    expected = run(files, features="evaluating.Spatial")["figures"]
    record = run(files, features="evaluating.Spatial", reference=str(known), force=True)
    assert record["reference"]["statistics"]["entries"] == ["mu", "sigma", "mu_s", "sigma_s"]
    assert record["figures"]["sFD(digits)"] == pytest.approx(expected["sFD(digits)"], rel=1e-6)
    assert expected["sFD(digits)"] > 0.1
    with np.load(known, allow_pickle=False) as file:
        np.savez(files["reference"], mu=file["mu"], sigma=file["sigma"], network_sha256=file["network_sha256"])
    assert "wanted mu_s and sigma_s" in refused(
        files, features="evaluating.Spatial", metrics=["spatial_frechet"], force=True
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keep_images": 51}, "keep_images: wanted 0 to 50"),
        ({"batch_size": 0}, "batch_size"),
        ({"images": "nowhere"}, "images: wanted .* found nothing at 'nowhere'"),
        ({"out": "/dev/null/x.npz"}, "wanted a path in a folder"),
    ],
)
def test_statistics_refuse_nonsense(files, values, message):
    with pytest.raises(UserError, match=message):
        statistics(files, **values)


def test_statistics_overwrite_nothing_without_force(files):
    out = statistics(files)
    before = out.read_bytes()
    with pytest.raises(UserError, match="is there already"):
        statistics(files)
    assert out.read_bytes() == before


def test_a_full_disk_is_one_line_and_leaves_no_half_file(files):
    (files["folder"] / f".known.npz.{os.getpid()}.dit_shd.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"known\.npz: cannot be written: the disk is full; make room"):
        statistics(files)
    assert not list(files["folder"].glob("*known*"))


def test_statistics_of_statistics_are_refused_and_a_page_tells_of_how_many_images_they_are(files):
    """Else the few images that a file keeps would stand for all that its statistics are of."""
    known = statistics(files, keep_images=10)
    with pytest.raises(UserError, match=r"known\.npz holds statistics already \(mu, sigma\); give it as reference="):
        statistics(files, images=str(known), out=str(files["folder"] / "again.npz"))
    record = run(files, reference=str(known), metrics=["frechet"], out=str(files["folder"] / "few.json"))
    assert "known.npz (statistics of 50 images, 10 of them kept)" in table(record)


def test_networks_of_other_options_are_other_networks(files, monkeypatch):
    """Their weights, and so their hashes, are the same."""
    monkeypatch.setattr(plugins, "_trusted", {"evaluating"})
    one, two = ({"name": "evaluating.Scaled", "scale": scale} for scale in (1.0, 2.0))
    figure = run(files, features=one, metrics=["frechet"])["figures"]["FD(scaled)"]
    assert "holds another result" in refused(files, features=two, metrics=["frechet"])
    doubled = run(files, features=two, metrics=["frechet"], out=files["folder"] / "two.json")
    assert doubled["figures"]["FD(scaled)"] == pytest.approx(4 * figure)
    records = [read_record(file) for file in (files["samples"].parent / "results.json", files["folder"] / "two.json")]
    assert evaluator_difference(*records) == ("options of evaluating.Scaled", "{}", "{'scale': 2.0}")
    config = {"images": str(files["reference"]), "out": files["folder"] / "s.npz", "features": two}
    write_reference_statistics(make(StatisticsConfig, config))
    values = {"reference": str(files["folder"] / "s.npz"), "metrics": ["frechet"], "out": files["folder"] / "3.json"}
    assert 'with options {}, found {"scale": 2.0}' in refused(files, features=one, **values)
    assert run(files, features=two, **values)["figures"] == pytest.approx(doubled["figures"])
