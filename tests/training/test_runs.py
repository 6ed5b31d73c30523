"""Training, sampling and scoring from Python in a line each, as a notebook shows them."""

import numpy as np
import pytest
import torch

import dit_shd
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.training import runs
from dit_shd.training.config import TrainConfig


def test_train_sample_and_evaluate_from_python(values, shapes, tmp_path):
    run = dit_shd.train(values, progress=False, steps=2, optimizer={"lr": 1e-3})
    assert (run.step, run.steps) == (2, 2)
    assert [row["step"] for row in run.metrics] == [1, 2]
    assert sum(p.numel() for p in run.student().parameters()) > 0
    shown = run._repr_html_()
    assert "step 2 of 2" in shown and "<polyline" in shown and "plain/shd" in shown
    again = dit_shd.train(run.path, progress=False, steps=3)
    assert again.step == 3 and again.metrics[:2] == run.metrics[:2]

    samples = dit_shd.sample(run.path, labels=[2, 0, 1], steps=2)
    images, labels = samples
    assert images.shape == (3, 8, 8, 1) and list(labels) == [2, 0, 1]
    assert "data:image/png;base64," in samples._repr_html_()
    saved = samples.save(tmp_path / "three.npz")
    with np.load(saved) as file:
        np.testing.assert_array_equal(file["arr_0"], images)
    with pytest.raises(UserError, match="is there already"):
        samples.save(saved)
    with pytest.raises(UserError, match="wanted classes 0 to 2, found 0 to 3"):
        dit_shd.sample(run.path, labels=[0, 3], steps=2)


def test_a_run_leaves_the_callers_generator_alone_and_takes_numbers_of_numpy(values, tmp_path):
    """A random search that drew its learning rates from torch had tried one of them again and again."""
    torch.manual_seed(5)
    drawn = torch.rand(2).tolist()
    torch.manual_seed(5)
    found = []
    for number in range(2):
        found.append(torch.rand(()).item())
        dit_shd.train(values, progress=False, run=str(tmp_path / f"{number}"), steps=np.int64(1), seed=np.int64(number))
    assert found == drawn


def test_two_runs_at_once_in_a_process_are_refused(values):
    """Both would draw from torch's one generator: neither could be repeated."""
    with runs._one_run, pytest.raises(UserError, match="another run trains in this process"):
        dit_shd.train(values, progress=False)


def test_what_is_no_config_and_no_precision_is_refused(values, teacher):
    with pytest.raises(TypeError):
        dit_shd.train(values, {"steps": 9})
    with pytest.raises(UserError, match="train: wanted values, a YAML file or a name, found TrainConfig"):
        dit_shd.train(make(TrainConfig, values))
    with pytest.raises(UserError, match=r"precision: wanted no | bf16 | .*, found 'fp16'"):
        dit_shd.load(teacher, precision="fp16")


def test_figures_are_a_mapping_and_a_table(files):
    from_files = dit_shd.evaluate(files["samples"], reference=files["reference"], features="digits")
    assert from_files["FD(digits)"] >= 0 and set(from_files) == set(dict(from_files))
    with np.load(files["samples"]) as one, np.load(files["reference"]) as other:
        from_arrays = dit_shd.evaluate(one["arr_0"], other["arr_0"], features="digits")
        with pytest.raises(UserError, match="resamples: is of files, and arrays are scored by metrics and batch_size"):
            dit_shd.evaluate(one["arr_0"], other["arr_0"], features="digits", resamples=10)
        with pytest.raises(UserError, match="batch_size: wanted at least 1 image, found 0"):
            dit_shd.evaluate(one["arr_0"], other["arr_0"], features="digits", batch_size=0)
    assert from_arrays["FD(digits)"] == pytest.approx(from_files["FD(digits)"], rel=1e-6)
    assert "<th>FD(digits)</th>" in from_arrays._repr_html_() and "FD(digits)" in str(from_files)
    assert "ADM-comparable" in from_files._repr_html_()


def test_changes_are_merged_into_groups_and_replace_plugins():
    from dit_shd.training.runs import merged

    values = {"optimizer": {"name": "adamw", "lr": 1.0}, "data": {"name": "npz", "path": "x"}, "steps": 1}
    changed = merged(values, {"optimizer": {"lr": 2.0}, "data": {"name": "digits"}, "steps": 3})
    assert changed == {"optimizer": {"name": "adamw", "lr": 2.0}, "data": {"name": "digits"}, "steps": 3}
    assert values["optimizer"]["lr"] == 1.0
    renamed = merged(values, {"optimizer": {"name": "adan"}})["optimizer"]
    assert renamed == {"name": "adan", "lr": 1.0}, "a group has a name besides its other keys"


def test_changes_of_a_plugin_that_is_named_by_text_are_changes_of_that_plugin():
    """`task: flow_matching` is short for {name: flow_matching}; a change of its options had made it diffusion."""
    from dit_shd.training.runs import merged

    values = {"task": "flow_matching", "data": "digits", "teacher": "runs/x"}
    changes = {"task": {"label_dropout": 0.2}, "data": {"split": "validation"}, "teacher": {"a": "x", "b": "y"}}
    assert merged(values, changes) == {
        "task": {"name": "flow_matching", "label_dropout": 0.2},
        "data": {"name": "digits", "split": "validation"},
        "teacher": {"a": "x", "b": "y"},
    }
    assert merged(values, {"task": {"name": "diffusion"}})["task"] == {"name": "diffusion"}
    like = {"like": "teacher", "num_layers": 1}
    assert merged({"student": {"name": "mdt", "size": "S/2"}}, {"student": like}) == {"student": like}
    assert merged({"student": like}, {"student": {"num_layers": 2}})["student"] == {**like, "num_layers": 2}


def test_mappings_by_the_users_names_and_steps_are_replaced():
    """A schedule, teachers and a layer map are values: what was there before is no part of the new one."""
    from dit_shd.training.runs import merged

    values = {
        "base_weight": {0: 1.0, 1000: 0.0},
        "teacher": {"a": "x", "b": "y"},
        "initialisation": {"layers": {"s": "t"}},
    }
    changes = {"base_weight": {0: 0.5}, "teacher": {"c": "z"}, "initialisation": {"layers": {"u": "v"}}}
    assert merged(values, changes) == changes


def test_from_run_of_python_replaces_from_of_a_config():
    from dit_shd.training.runs import merged

    assert merged({"from": "a", "steps": 1}, {"from_run": "b"}) == {"from_run": "b", "steps": 1}
