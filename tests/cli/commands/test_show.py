"""`dit-shd show RUN`: what a run is and how far, also while it writes, and without torch."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml

from dit_shd.cli.program import main
from dit_shd.core.lock import Lock


@pytest.fixture(scope="module")
def run(tmp_path_factory, shapes, teacher):
    from small_runs import values_of

    folder = tmp_path_factory.mktemp("show")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values_of(shapes, teacher, folder / "run")))
    assert main(["train", str(folder / "tiny.yaml"), "steps=2"]) == 0
    return folder / "run"


def shown(capsys, run) -> str:
    assert main(["show", str(run)]) == 0
    return capsys.readouterr().out


def test_a_finished_run(run, capsys):
    text = shown(capsys, run)
    assert "finished, step 2 of 2 (100%)" in text
    assert "base + 1.0 x output + 0.5 x shd" in text
    assert "checkpoints" in text and "M parameters" in text and "noise" in text
    assert f"next: dit-shd sample {run} count=100" in text


def test_a_run_whose_last_save_failed_is_not_finished(run, tmp_path, capsys):
    """The disk was full: its last steps are logged, and its student is of those before."""
    place = tmp_path / "run"
    shutil.copytree(run, place)
    (last,) = (place / "checkpoints").glob("step_*2")
    last.rename(last.with_name("step_000001"))
    text = shown(capsys, place)
    assert "not running, step 2 of 2 (100%), saved at 1" in text and f"next: dit-shd train {place}" in text
    shutil.rmtree(place / "checkpoints")  # to make room, of a run that is done
    assert "finished, step 2 of 2 (100%)" in shown(capsys, place)


def test_a_run_that_is_at_work_and_half_a_line(run, capsys):
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "steps": 50}))
    with open(run / "metrics.jsonl", "a") as lines:
        lines.write(json.dumps({"step": 25, "loss": 0.125, "plain/noise": 0.5}) + '\n{"step": 2')
    with Lock(run / ".lock", "dit-shd train"):
        text = shown(capsys, run)
    assert "running, step 25 of 50 (50%)" in text and "loss 0.125" in text and "min left" in text
    text = shown(capsys, run)
    assert "not running, step 25" in text and f"next: dit-shd train {run}" in text


def test_figures_and_samples_of_earlier_weights_are_named(run, tmp_path, capsys):
    """After the run went on; sampling again says so, too, and not of samples that are of now."""
    place = tmp_path / "run"
    shutil.copytree(run, place)
    config = yaml.safe_load((place / "config.yaml").read_text())
    (place / "config.yaml").write_text(yaml.safe_dump({**config, "run": str(place), "steps": 2, "ema": 0.5}))
    sample = ["sample", str(place), "count=2", "steps=2", "guidance=1"]
    assert main(sample) == 0
    sidecar = json.loads((place / "samples_2_seed0.json").read_text())
    record = {"figures": {"FD(x)": 243.4}, "samples": {"sidecar": sidecar}}
    (place / "results.json").write_text(json.dumps(record))
    (place / "two.results.json").write_text(json.dumps({"figures": {"FD(x)": 1}, "runs": [record]}))
    assert shown(capsys, place).count("FD(x)") == 2 and "earlier" not in shown(capsys, place)
    assert main(sample) == 2
    assert (
        "samples_2_seed0.json: is there already; choose another out=FILE or say force=true" in capsys.readouterr().err
    )
    weights = next((place / "student").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert shown(capsys, place).count(" (of earlier weights: sample again)\n") == 2
    assert main(sample) == 2
    words = "is there already, of earlier weights of this run; choose another out=FILE, or force=true replaces it"
    assert words in capsys.readouterr().err
    assert main([*sample, "force=true"]) == 0


def test_a_link_to_nothing_and_values_that_are_missing(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "samples").symlink_to(tmp_path / "gone")
    config = yaml.safe_load((run / "config.yaml").read_text())
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({**config, "steps": None}))
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": null}\n')
    assert " of 0 " in shown(capsys, tmp_path / "run")


def test_what_is_no_run_is_refused_and_its_runs_are_named(run, tmp_path, capsys):
    assert main(["show", str(tmp_path)]) == 2
    assert "wanted a run folder" in capsys.readouterr().err
    assert main(["show", str(run.parent)]) == 2
    assert f"it holds some: {run}" in capsys.readouterr().err


def test_of_all_that_a_folder_holds_the_runs_are_shown(run, tmp_path, capsys):
    """As of `runs/*`, where a page or latents lie, too."""
    page, latents = tmp_path / "compare.html", tmp_path / "latents"
    page.write_text("")
    latents.mkdir()
    assert main(["show", str(page), str(run), str(latents), str(run)]) == 2
    said = capsys.readouterr()
    assert said.out.count("run ") >= 2 and said.out.count("checkpoints") == 2 and not said.out.startswith("\n")
    assert f"{page}: wanted a run folder, found a file; {latents}: wanted a run folder, found a folder" in said.err


@pytest.mark.parametrize("of", ["asset:digits_teacher", "teachers/one"])
def test_figures_of_the_teacher_say_so(run, tmp_path, capsys, monkeypatch, of):
    """They had been shown as the run's, in whose folder evaluate proposes to put the teacher's samples."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "run"
    shutil.copytree(run, place)
    config = yaml.safe_load((place / "config.yaml").read_text())
    (place / "config.yaml").write_text(yaml.safe_dump({**config, "teacher": of}))
    record = {"figures": {"FD(x)": 93.2}, "samples": {"sidecar": {"run": of}, "path": "run/teacher_of_x.npz"}}
    (place / "results.json").write_text(json.dumps(record))
    assert f"FD(x) 93.2 (of the teacher, {of})\n" in shown(capsys, place)


def test_it_imports_no_torch(run):
    code = (
        "import sys\nfrom dit_shd.cli.program import main\nassert main(sys.argv[1:]) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "show", str(run)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
