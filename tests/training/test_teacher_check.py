"""A teacher that does not do what we think is refused before anything is written."""

import logging
from pathlib import Path

import numpy as np
import pytest
import yaml
from runs import contents, run
from two_process_jobs import read, said

from dit_shd.core.errors import UserError
from dit_shd.models import loading
from dit_shd.models.families import mdt


def test_a_run_is_refused_before_anything_is_written(values):
    with pytest.raises(UserError, match=r"no better than a linear .*velocity.*\(noise error .* images\)") as error:
        run({**values, "check_teacher": "refuse"})
    assert "\n" not in str(error.value)
    assert "check_teacher=warn" in str(error.value)
    assert not Path(values["run"]).exists()
    with pytest.raises(UserError, match="no better than a linear"):  # the default
        run({k: v for k, v in values.items() if k != "check_teacher"})


def test_a_warning_and_no_look_leave_the_same_bytes(values, tmp_path, caplog):
    """Bit for bit but for the key itself; and a run that has begun is not looked at again."""
    caplog.set_level(logging.INFO, "dit_shd")
    found = {}
    for choice in ("warn", "no"):
        caplog.clear()
        config, _ = run({**values, "run": str(tmp_path / choice), "check_teacher": choice}, steps=2)
        files = contents(config.run).items()
        found[choice] = {name: data.replace(b"check_teacher: warn", b"check_teacher: 'no'") for name, data in files}
        said = [record.getMessage() for record in caplog.records if "linear" in record.getMessage()]
        assert len(said) == (2 if choice == "warn" else 0), "the figures, and the warning"
    assert found["warn"] == found["no"]
    run({**values, "run": str(tmp_path / "no"), "check_teacher": "refuse"}, steps=3)


def test_a_run_begun_by_an_older_version_goes_on(values):
    config, _ = run(values, steps=2)
    file = config.run / "config.yaml"
    told = yaml.safe_load(file.read_text())
    del told["check_teacher"]
    file.write_text(yaml.safe_dump(told))
    assert len(run({k: v for k, v in values.items() if k != "check_teacher"}, steps=3)[1]) == 1


@pytest.mark.parametrize("why", ["label_dropout is 1", "it has one class"])
def test_labels_are_not_looked_at_where_there_are_none(values, tmp_path, caplog, why):
    caplog.set_level(logging.INFO, "dit_shd")
    changes = {"label_dropout": 1.0}
    if "class" in why:
        np.savez(tmp_path / "one.npz", np.load(values["data"]["path"])["arr_0"], np.zeros(60, int))
        model = mdt.MDTv2(**{**dict(loading.load(values["teacher"]).config), "num_classes": 1})
        model.save_pretrained(tmp_path / "one")
        changes = {"data": {"name": "npz", "path": str(tmp_path / "one.npz")}, "teacher": str(tmp_path / "one")}
    run({**values, **changes, "check_teacher": "warn"}, steps=1)
    assert f"labels were not compared, since {why}" in caplog.text
    assert "standard errors" not in caplog.text


@pytest.mark.two_processes("refusal")
def test_two_processes_refuse_alike(by_two):
    """With the figures of one process, and by a line in each."""
    assert said(by_two) == [[read(by_two, "alone.json")]] * 2
    assert not (by_two / "run").exists()
