import sys

import pytest
import yaml
from studies import STAND_IN, VALUES

from dit_shd.core import plugins
from dit_shd.study import processes
from dit_shd.study.runner import StudyConfig


@pytest.fixture(autouse=True)
def nobody_is_trusted(monkeypatch):
    """Other tests of this process trust packages, which commands are told."""
    monkeypatch.setattr(plugins, "_trusted", set())


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Write a study whose commands are the stand-in's; its config, with what is asked of the command line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(processes.PROGRAMS, "dit-shd", (sys.executable, str(STAND_IN)))
    (tmp_path / "base.yaml").write_text("data: {name: digits}\nlosses: [{name: output}]\n")

    def write(options=None, **changes):
        (tmp_path / "study.yaml").write_text(yaml.safe_dump({**VALUES, **changes}, sort_keys=False))
        return StudyConfig(study=tmp_path / "study.yaml", **(options or {}))

    return write
