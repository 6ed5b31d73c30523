"""The evaluator from files to results.json, and every bad input it must refuse in one clear line."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dit_shd import registry
from dit_shd.config import Plugin, make
from dit_shd.errors import UserError
from dit_shd.evaluator import EvaluateConfig, evaluate, extract_features, score
from dit_shd.features.digits import Digits
from dit_shd.image_sets import ArrayImages, FolderImages, NpzImages, open_images

FIGURES = ["FD(digits)", "IS(digits)", "IS(digits) std", "precision", "recall"]


class Trap:
    """Unpickling this makes a folder: proof that code ran."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def pictures(n: int, seed: int, shape: tuple[int, ...] = (28, 28, 1)) -> np.ndarray:
    """Random smooth blots, uint8 [n, h, w, c]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 4, 4, shape[2]), dtype=np.uint8)
    return coarse.repeat(-(-shape[0] // 4), 1)[:, : shape[0]].repeat(-(-shape[1] // 4), 2)[:, :, : shape[1]]


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    """Samples with labels and a reference, as npz files in two folders."""
    samples, reference = tmp_path / "samples" / "set.npz", tmp_path / "reference.npz"
    samples.parent.mkdir()
    np.savez(samples, pictures(40, seed=1), np.arange(40) % 10)
    np.savez(reference, pictures(50, seed=2))
    return {"samples": samples, "reference": reference, "folder": tmp_path}


def run(files: dict[str, Path], **values) -> dict:
    defaults = {"samples": str(files["samples"]), "reference": str(files["reference"]), "features": "digits"}
    return evaluate(make(EvaluateConfig, {**defaults, "device": "cpu", **values}))


def refused(files: dict[str, Path], **values) -> str:
    with pytest.raises(UserError) as caught:
        run(files, **values)
    message = str(caught.value)
    assert "\n" not in message
    return message


# What comes out


def test_figures_are_those_of_the_metrics_on_the_features(files, capsys):
    record = run(files)
    samples, reference = (
        extract_features(Digits(), ArrayImages(pictures(n, seed=seed), "x"), batch_size=n)
        for n, seed in ((40, 1), (50, 2))
    )
    expected = {}
    for name in ("frechet", "inception_score", "precision_recall"):
        expected |= registry.find("metrics", name)().compute(samples, reference)
    assert list(expected) == FIGURES
    assert {k: record["figures"][k] for k in FIGURES} == pytest.approx(expected, rel=1e-4)
    assert expected["FD(digits)"] > 0.1
    out = capsys.readouterr().out
    assert "40 images" in out
    assert f"FD(digits)      {record['figures']['FD(digits)']:12.4f}" in out
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
    assert record["features"]["sha256"] == Digits().sha256
    assert record["features"]["is_fid"] is False
    assert record["versions"]["torch"] == torch.__version__
    assert record["command"]
    assert any("singular" in note for note in record["notes"])  # 40 images, 64 features


def test_figures_do_not_depend_on_the_batch_size(files):
    one, other = run(files, batch_size=7), run(files, batch_size=64, out=str(files["folder"] / "b.json"))
    assert one["figures"] == pytest.approx(other["figures"], rel=1e-5)


def test_features_stay_in_file_order(files):
    network, images = Digits(), pictures(40, seed=1)
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
    network = Digits()
    direct = score(samples, reference, network)
    prepared = extract_features(network, ArrayImages(reference, "reference"))
    assert direct == pytest.approx(record["figures"], rel=1e-9)
    assert score(torch.from_numpy(samples), prepared, network) == pytest.approx(direct, rel=1e-9)
    assert list(score(samples, prepared, network, ["frechet"])) == ["FD(digits)"]


def test_chosen_metrics_take_options(files):
    record = run(files, metrics=[{"name": "precision_recall", "k": 5}])
    assert list(record["figures"]) == ["precision", "recall"]
    assert record["metrics"] == [{"name": "precision_recall", "k": 5}]
    assert record["figures"]["recall"] >= score(pictures(40, 1), pictures(50, 2), Digits())["recall"]


def test_a_dataset_of_ours_is_a_set_of_images():
    validation, everything = open_images("digits:validation", "samples"), open_images("digits:all", "samples")
    assert validation.shape == (500, 28, 28, 1)
    assert everything.shape == (5000, 28, 28, 1)
    assert validation.labels is not None
    assert validation.sha256() != everything.sha256()
    with pytest.raises(UserError, match=r"samples\.split"):
        open_images("digits:nowhere", "samples")


def test_class_sorted_samples_are_noted_only_where_it_matters(files):
    images = pictures(5100, seed=3)
    np.savez(files["samples"], images, np.arange(5100) // 510)
    sorted_notes = run(files, metrics=["frechet"])["notes"]
    np.savez(files["samples"], images, np.arange(5100) % 10)
    mixed_notes = run(files, metrics=["frechet"], force=True)["notes"]
    assert any("sorted by class" in note for note in sorted_notes)
    assert not any("sorted by class" in note for note in mixed_notes)


# References of statistics


def write_statistics(path: Path, images: np.ndarray, **extra) -> None:
    features = extract_features(Digits(), ArrayImages(images, "x"))
    np.savez(path, mu=features.mean.numpy(), sigma=features.covariance.numpy(), n=features.n, **extra)


def test_statistics_with_the_networks_hash_give_the_distance_of_the_images(files):
    images = pictures(200, seed=4)
    np.savez(files["reference"], images)
    expected = run(files)["figures"]["FD(digits)"]
    write_statistics(files["reference"], images, network_sha256=Digits().sha256)
    record = run(files, force=True)
    assert record["figures"]["FD(digits)"] == pytest.approx(expected, rel=1e-6)
    assert "precision" not in record["figures"]
    assert any("precision_recall left out" in note for note in record["notes"])
    assert record["reference"]["statistics"]["n"] == 200
    assert "only statistics" in refused(files, metrics=["precision_recall"], force=True)


def test_statistics_win_over_the_images_beside_them_as_in_adms_file(files):
    shown, behind = pictures(50, seed=2), pictures(200, seed=4)
    alone = run(files)["figures"]
    write_statistics(files["reference"], behind, network_sha256=Digits().sha256, arr_0=shown)
    both = run(files, force=True)["figures"]
    assert both["precision"] == alone["precision"]
    assert both["recall"] == alone["recall"]
    assert both["FD(digits)"] == pytest.approx(
        score(pictures(40, 1), behind, Digits(), ["frechet"])["FD(digits)"], rel=1e-6
    )
    assert both["FD(digits)"] != pytest.approx(alone["FD(digits)"], rel=1e-3)


@pytest.mark.parametrize("extra", [{}, {"network_sha256": "0" * 64}])
def test_statistics_of_another_or_an_unnamed_network_are_refused(files, extra):
    write_statistics(files["reference"], pictures(60, seed=4), **extra)
    assert "wanted statistics of feature network digits" in refused(files)


@pytest.mark.parametrize(
    ("mu", "sigma", "message"),
    [
        (np.zeros(64), np.eye(63), "wanted statistics"),
        (np.zeros((2, 64)), np.eye(64), "wanted statistics"),
        (np.zeros(64, dtype=int), np.eye(64), "wanted statistics"),
        (np.full(64, np.nan), np.eye(64), "finite"),
    ],
)
def test_broken_statistics_are_refused(files, mu, sigma, message):
    np.savez(files["reference"], mu=mu, sigma=sigma, network_sha256=Digits().sha256)
    assert message in refused(files)


def test_only_the_real_inception_weights_give_fid(files, monkeypatch):
    monkeypatch.setattr(Digits, "is_fid", True)
    monkeypatch.setattr(Digits, "title", "inception-2015")
    record = run(files)
    assert list(record["figures"]) == ["FID", "IS", "IS std", "precision", "recall"]
    assert any("published FID is of 50,000" in note for note in record["notes"])


# Results are not lost


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


def test_an_impossible_output_path_is_refused_before_the_network_runs(files, monkeypatch):
    monkeypatch.setattr(Digits, "extract", lambda *_: pytest.fail("the network ran"))
    assert "found a folder" in refused(files, out=str(files["folder"]))
    assert "wanted a path in a folder" in refused(files, out=str(files["reference"] / "below" / "r.json"))


# Bad samples


def cut_member(path: Path) -> None:
    """A zip that is whole around an array that is not."""
    np.save(path.with_suffix(".npy"), pictures(40, seed=1))
    data = path.with_suffix(".npy").read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", data[:-1000])


def flip_byte(path: Path) -> None:
    """One pixel differs from the checksum."""
    np.savez(path, pictures(40, seed=1))
    data = bytearray(path.read_bytes())
    data[5000] ^= 0xFF
    path.write_bytes(data)


def cut_file(path: Path) -> None:
    np.savez(path, pictures(40, seed=1))
    path.write_bytes(path.read_bytes()[:20_000])


BAD_FILES = {
    "missing": (lambda p: p.unlink(), "found nothing there"),
    "text": (lambda p: p.write_bytes(b"hello"), "found a broken one"),
    "empty": (lambda p: p.write_bytes(b""), "found a broken one"),
    "cut file": (cut_file, "found a broken one"),
    "cut array": (cut_member, "cut short"),
    "flipped byte": (flip_byte, "found a broken one"),
    "no arr_0": (lambda p: np.savez(p, images=pictures(9, 0)), "wanted images in arr_0, found images.npy"),
    "float": (lambda p: np.savez(p, pictures(9, 0) / 255), "found float64"),
    "signed": (lambda p: np.savez(p, pictures(9, 0).astype(np.int64)), "found int64"),
    "three axes": (lambda p: np.savez(p, pictures(9, 0)[..., 0]), "wanted images uint8 [n, h, w, c]"),
    "channels first": (
        lambda p: np.savez(p, pictures(9, 0, (28, 28, 3)).transpose(0, 3, 1, 2)),
        "channels last",
    ),
    "no images": (lambda p: np.savez(p, pictures(9, 0)[:0]), "wanted at least 1 image"),
    "objects": (lambda p: np.savez(p, np.array([Trap(p.parent / "mark")])), "found object"),
    "object labels": (lambda p: np.savez(p, pictures(9, 0), np.array([Trap(p.parent / "mark")])), "broken"),
    "fortran": (lambda p: np.savez(p, np.asfortranarray(pictures(9, 0))), "Fortran order"),
}


@pytest.mark.parametrize("which", ["samples", "reference"])
@pytest.mark.parametrize("bad", BAD_FILES)
def test_bad_files_are_one_line_that_names_them(files, bad, which):
    make_bad, message = BAD_FILES[bad]
    make_bad(files[which])
    text = refused(files)
    assert message in text
    assert str(files[which]) in text
    assert not (files[which].parent / "mark").exists(), "code from the file ran"
    assert not (files["samples"].parent / "results.json").exists()


@pytest.mark.parametrize("shape", [(32, 32, 1), (28, 28, 3)])
def test_samples_and_reference_of_another_shape_are_refused(files, shape):
    np.savez(files["reference"], pictures(50, 2, shape))
    assert "wanted reference images like the samples" in refused(files)
    np.savez(files["samples"], pictures(40, 1, shape))
    assert "feature network digits wants images of 28 x 28" in refused(files)


def test_too_few_images_for_a_metric(files):
    np.savez(files["samples"], pictures(3, seed=1))
    assert "wanted at least 4 images, found 3" in refused(files, metrics=["frechet", "precision_recall"])
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
    network = Digits()
    prepared = extract_features(network, ArrayImages(pictures(9, 0), "x"))
    network.title = "other"
    with pytest.raises(UserError, match="extract both with one network"):
        score(pictures(9, 0), prepared, network)


# Folders


def test_a_folder_is_read_in_the_order_of_its_paths_and_its_hash_covers_names_and_contents(tmp_path):
    a, b = pictures(2, seed=5, shape=(8, 6, 3))
    for name, image in (("1/z.png", a), ("2/a.png", b)):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    found = FolderImages(tmp_path, "x")
    assert found.shape == (2, 8, 6, 3)
    np.testing.assert_array_equal(np.concatenate(list(found.batches(1))), np.stack([a, b]))
    first = found.sha256()
    (tmp_path / "2/a.png").rename(tmp_path / "2/b.png")
    assert FolderImages(tmp_path, "x").sha256() != first


def broken_png(folder: Path) -> None:
    file = folder / "0.png"
    file.write_bytes(file.read_bytes()[:60])


BAD_FOLDERS = {
    "no images": (lambda f: [p.unlink() for p in f.glob("*.png")], "found none in it"),
    "sizes": (lambda f: Image.new("L", (9, 9)).save(f / "7.png"), "7.png"),
    "modes": (lambda f: Image.new("RGB", (28, 28)).save(f / "7.png"), "7.png"),
    "palette": (lambda f: Image.new("P", (28, 28)).save(f / "7.png"), "found mode P"),
    "broken": (broken_png, "found a broken file"),
    "text": (lambda f: (f / "7.png").write_text("hello"), "found a broken file"),
}


@pytest.mark.parametrize("bad", BAD_FOLDERS)
def test_bad_folders_are_refused(files, bad):
    folder = files["folder"] / "pngs"
    folder.mkdir()
    for i, image in enumerate(pictures(5, seed=1)):
        Image.fromarray(image[..., 0]).save(folder / f"{i}.png")
    make_bad, message = BAD_FOLDERS[bad]
    make_bad(folder)
    assert message in refused(files, samples=str(folder))


def test_jpeg_samples_are_noted(files):
    folder = files["folder"] / "jpegs"
    folder.mkdir()
    for i, image in enumerate(pictures(5, seed=1)):
        Image.fromarray(image[..., 0]).save(folder / f"{i}.jpg")
    assert any("JPEG" in note for note in run(files, samples=str(folder))["notes"])


def test_an_npz_is_read_batch_by_batch_in_order(files):
    found = NpzImages(files["samples"], "x")
    batches = list(found.batches(16))
    assert [len(batch) for batch in batches] == [16, 16, 8]
    np.testing.assert_array_equal(np.concatenate(batches), pictures(40, seed=1))
    assert found.labels is not None
    assert found.labels.tolist() == [i % 10 for i in range(40)]


def test_the_default_network_is_the_one_of_fid():
    assert make(EvaluateConfig, {"samples": "a", "reference": "b"}).features == Plugin("inception")
