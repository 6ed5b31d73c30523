"""Listing and copying the experiments that ship."""

import pytest

from dit_shd.cli.program import main
from dit_shd.core.shipped_configs import read_config, shipped_configs
from dit_shd.core.yaml_files import read_yaml


def test_every_experiment_is_listed_with_what_it_is(capsys):
    assert main(["configs"]) == 0
    text = capsys.readouterr().out
    for name in shipped_configs():
        assert f"\n{name}" in f"\n{text}"
    assert "digits_shd (3 to 5 minutes on one core)" in text
    assert "mdtv2_b2_to_s2_shd (54.5 A100 or 17.2 H100 hours)" in text


def test_a_copy_is_the_file_and_is_never_written_over(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["configs", "digits_shd"]) == 0
    copy = tmp_path / "digits_shd.yaml"
    assert copy.read_bytes() == shipped_configs()["digits_shd"].read_bytes()
    assert "next: dit-shd train digits_shd.yaml" in capsys.readouterr().out
    assert main(["configs", "digits_shd"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["configs", "classification/deit_ti_alone", "out=mine.yaml"]) == 0
    assert (tmp_path / "mine.yaml").exists()
    capsys.readouterr()
    assert main(["configs", "digits_shd", "out=mine.yaml/x.yaml"]) == 2
    assert "cannot be written" in (said := capsys.readouterr().err) and said.endswith("choose another out=FILE\n")


def test_a_copy_has_the_keys_of_its_base_and_needs_no_other_file(tmp_path, monkeypatch):
    """Where it only names its base, the command that is advised next fails."""
    monkeypatch.chdir(tmp_path)
    bases = {name: file for name, file in shipped_configs().items() if "\nbase: " in file.read_text()}
    assert {"mdtv2_b1_512_teacher", "dit_b2_alone"} <= bases.keys()
    for name, file in bases.items():
        assert main(["configs", name]) == 0
        text, original = (place.read_text() for place in (tmp_path / file.name, file))
        assert "\nbase: " not in text and text.startswith(original[: original.index("\nbase: ")])
        assert read_yaml(tmp_path / file.name) == read_yaml(file)


@pytest.mark.parametrize("name", ["digits_sdh", "nowhere"])
def test_an_unknown_experiment(name, capsys):
    assert main(["configs", name]) == 2
    assert "the name of an experiment, found nothing" in capsys.readouterr().err


@pytest.mark.parametrize("text", [b"", b"a: [1", b"- a", b"a: \xff"])
def test_what_is_no_config_is_not_copied(text, tmp_path, capsys):
    """Each was a traceback, or a copy that training refuses."""
    (tmp_path / "x.yaml").write_bytes(text)
    assert main(["configs", str(tmp_path / "x.yaml"), f"out={tmp_path / 'y.yaml'}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "y.yaml").exists()


def test_a_folder_of_an_experiment_s_name(tmp_path, monkeypatch, caplog):
    """A run in it is what is meant, which is said; it had stood for the experiment without a word, or hidden it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "digits_shd"
    folder.mkdir()
    assert read_config("digits_shd") == read_yaml(shipped_configs()["digits_shd"])
    assert not caplog.text
    (folder / "config.yaml").write_text("steps: 3\n")
    with caplog.at_level("INFO"):
        assert read_config("digits_shd") == {"steps": 3, "run": "digits_shd"}
    assert "of the run in this folder, not of the experiment: that is configs/digits_shd.yaml" in caplog.text
    assert read_config("configs/digits_shd.yaml") == read_yaml(shipped_configs()["digits_shd"])
