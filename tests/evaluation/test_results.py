"""Results files: their names, and what is never overwritten."""

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from evaluating import pictures, refused, run
from safetensors.torch import load_file, save_file

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.data.image_sets import CRC, NpzImages
from dit_shd.evaluation import results
from dit_shd.evaluation.features.digits import ASSET, DigitsFeatures
from dit_shd.evaluation.reference_statistics import StatisticsConfig, write_reference_statistics
from dit_shd.evaluation.results import new_file


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


def test_two_evaluations_that_end_at_once_are_both_kept(files, monkeypatch):
    """Each found the name free before the other had written it."""
    run(files)
    folder = files["folder"] / "at_once"
    record = json.loads((files["samples"].parent / "results.json").read_text())
    other = {**record, "samples": {**record["samples"], "sha256": "1" * 64, "path": "other.npz"}}
    write = results.write
    monkeypatch.setattr(results, "write", lambda *given: (time.sleep(0.2), write(*given)))
    folder.mkdir()
    places = {"set": record, "other": other}
    threads = [
        threading.Thread(target=results.publish, args=([folder / "results.json", folder / f"{name}.json"], each, False))
        for name, each in places.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = {json.loads(text)["samples"]["sha256"] for text in records(folder).values()}
    assert kept == {record["samples"]["sha256"], "1" * 64}


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
    part = files["samples"].parent / f".results.json.{os.getpid()}.dit_shd.part"
    part.symlink_to("/dev/full")
    assert "results.json: cannot be written: the disk is full; make room" in refused(files)
    assert "FD(digits)" in capsys.readouterr().out
    assert not part.is_symlink()


def test_an_impossible_output_path_is_refused_before_the_network_runs(files, monkeypatch):
    monkeypatch.setattr(DigitsFeatures, "extract", lambda *_: pytest.fail("the network ran"))
    assert "found a folder" in refused(files, out=str(files["folder"]))
    assert "wanted a path in a folder" in refused(files, out=str(files["reference"] / "below" / "r.json"))


def test_the_settings_of_the_samples_are_never_overwritten(files):
    """Nor is a record that an earlier version wrote there taken for settings."""
    beside = files["samples"].with_suffix(".json")
    beside.write_text('{"rounding": "floor"}')
    for force in (False, True):
        message = refused(files, out=str(beside), force=force)
        assert "there stand the settings that" in message
    assert beside.read_text() == '{"rounding": "floor"}'
    record = run(files)
    beside.write_text(json.dumps(record))
    assert "sidecar" not in run(files, out=str(files["folder"] / "again.json"))["samples"]
    files["samples"].with_name("results.npz").write_bytes(files["samples"].read_bytes())
    folder = files["samples"].parent
    (folder / "results.json").unlink()
    run(files, samples=str(folder / "results.npz"))
    assert (folder / "results.results.json").is_file() and not (folder / "results.json").exists()


@pytest.mark.parametrize("which", ["samples", "reference"])
def test_what_is_read_is_never_written(files, which):
    before = files[which].read_bytes()
    link = files["folder"] / "link.npz"
    link.symlink_to(files[which])
    for out in (files[which], link):
        assert "is what is read here, and would be lost" in refused(files, out=str(out), force=True)
    values = {
        "images": str(files[which]),
        "out": str(files[which]),
        "features": "digits",
        "device": "cpu",
        "force": True,
    }
    with pytest.raises(UserError, match="is what is read here, and would be lost"):
        write_reference_statistics(make(StatisticsConfig, values))
    assert files[which].read_bytes() == before


def test_a_file_to_be_written_is_refused_before_the_work(tmp_path):
    out = tmp_path / "made" / "x.json"
    new_file(out)
    assert out.parent.is_dir() and not out.exists()
    out.write_text("")
    new_file(out, force=True, inputs=["digits:validation", out.parent])
    for force, remedy in ((None, "FILE$"), (False, "FILE or say force=true$")):
        with pytest.raises(UserError, match=rf"x\.json: is there already; choose another out={remedy}"):
            new_file(out, force)
    with pytest.raises(UserError, match="is what is read here, and would be lost"):
        new_file(out, True, [out])
    with pytest.raises(UserError, match="wanted a file, found a folder"):
        new_file(out.parent, force=True)


def test_settings_of_other_images_are_not_taken_and_named(files):
    """An npz that was copied over another: the count of both is the same."""
    beside, samples = files["samples"].with_suffix(".json"), NpzImages(files["samples"], "x")
    for settings, why in (({"count": 7}, "of 7"), ({CRC: samples.crc32 ^ 1, "count": 40}, "of another checksum")):
        beside.write_text(json.dumps(settings))
        record = run(files, page=False)
        assert "sidecar" not in record["samples"]
        assert any(f"{beside} is of other images ({why})" in note for note in record["notes"])
        (files["samples"].parent / "results.json").unlink()
    beside.write_text(json.dumps({CRC: samples.crc32}))
    assert run(files)["samples"]["sidecar"] == {CRC: samples.crc32}


def test_a_reference_that_is_the_samples_is_noted(files):
    note = "the samples are the reference itself: the figures say nothing of a model"
    assert note in run(files, reference=str(files["samples"]))["notes"]
    values = {"images": str(files["samples"]), "out": str(files["folder"] / "known.npz"), "features": "digits"}
    known = write_reference_statistics(make(StatisticsConfig, {**values, "device": "cpu"}))
    assert note in run(files, reference=str(known))["notes"]
    assert note not in run(files)["notes"]
