"""Where a run may be: other things are refused before anything is read."""

import pytest
from runs import run

from dit_shd.core.errors import UserError
from dit_shd.training import setup
from dit_shd.training.run_place import refuse_other


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_is_no_run_is_refused_before_models_and_data_are_read(values, tmp_path, monkeypatch, what):
    """Checking a teacher takes minutes."""
    for name in ("FAMILIES", "DATASETS"):
        monkeypatch.setattr(getattr(setup, name), "build", lambda *_: pytest.fail("read"))
    if what == "folder":
        (tmp_path / "run").mkdir()
    kept = tmp_path / "run" / "thesis.tex" if what == "folder" else tmp_path / "run"
    kept.write_text("x")
    with pytest.raises(UserError, match="not a run folder"):
        run(values)
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == [kept.name] and kept.read_text() == "x"


def test_what_a_run_was_killed_in_is_taken(tmp_path):
    refuse_other(tmp_path / "none")
    refuse_other(tmp_path)
    for name in (".lock", ".config.yaml.123.part"):
        (tmp_path / name).touch()
    refuse_other(tmp_path)
    (tmp_path / "config.yaml").touch()
    (tmp_path / "thesis.tex").touch()
    refuse_other(tmp_path)
