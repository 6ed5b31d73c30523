"""Listing and copying the experiments that ship."""

import pytest

from dit_shd.cli.program import main
from dit_shd.core.shipped_configs import shipped_configs


def test_every_experiment_is_listed_with_what_it_is(capsys):
    assert main(["configs"]) == 0
    text = capsys.readouterr().out
    for name in shipped_configs():
        assert f"\n{name}" in f"\n{text}"
    assert "digits_shd (3 to 5 minutes on one core)" in text
    assert "mdtv2_b2_to_s2_shd (54.6 A100 or 17.2 H100 hours)" in text


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


@pytest.mark.parametrize("name", ["digits_sdh", "nowhere"])
def test_an_unknown_experiment(name, capsys):
    assert main(["configs", name]) == 2
    assert "the name of an experiment, found nothing" in capsys.readouterr().err
