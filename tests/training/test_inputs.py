"""What a run learns from and what it learned from when it began."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from runs import run
from small_families import diffusers_dit
from small_runs import write_teacher

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.core.shipped_configs import read_config
from dit_shd.core.yaml_files import read_yaml
from dit_shd.data.datasets import DATASETS
from dit_shd.data.glance import alike, glance
from dit_shd.models import loading
from dit_shd.profiling.estimate import EstimateConfig
from dit_shd.training.config import TrainConfig
from dit_shd.training.dry_run import dry_run
from dit_shd.training.inputs import fingerprint
from dit_shd.training.runs import merged, train


def test_a_run_says_that_its_teacher_or_its_data_are_others_under_the_same_name(values, teacher, tmp_path, caplog):
    place = shutil.copytree(teacher, tmp_path / "teacher")
    changes = {"teacher": str(place), "run": str(tmp_path / "run")}
    config, _ = run({**values, **changes}, steps=1, checkpoint_every=1)
    kept = (config.run / "inputs.json").read_bytes()
    (config.run / "inputs.json").write_text('{"samples": 60, "teachers": {}, "glance": ["?"]}')  # damaged: written anew
    run({**values, **changes}, steps=2, checkpoint_every=1)
    assert (config.run / "inputs.json").read_bytes() == kept
    assert "this run began" not in caplog.text
    shutil.rmtree(place)
    write_teacher(place, seed=5)
    run({**values, **changes}, steps=3, checkpoint_every=1)
    assert "teacher: has other weights than those that this run began with" in caplog.text
    (config.run / "inputs.json").write_bytes(kept.replace(b'"samples": 60', b'"samples": 59'))
    run({**values, **changes}, steps=4)
    assert "data: 60 samples, and 59 when this run began" in caplog.text


def test_a_run_says_that_its_data_have_as_many_samples_and_others(values, shapes, tmp_path, caplog):
    place = shutil.copy(shapes, tmp_path / "data.npz")
    values = {**values, "data": {"name": "npz", "path": str(place)}}
    config, _ = run(values, steps=1)
    run(values, steps=2)
    known = json.loads((config.run / "inputs.json").read_text())
    (config.run / "inputs.json").write_text(json.dumps({key: known[key] for key in ("samples", "teachers")}))
    run(values, steps=3)  # begun by an earlier version
    assert "data: other samples" not in caplog.text
    with np.load(shapes) as arrays:
        np.savez(place, arr_0=255 - arrays["arr_0"], arr_1=arrays["arr_1"])
    (config.run / "inputs.json").write_text(json.dumps(known))
    run(values, steps=4)
    assert "data: other samples than those that this run began with, under the same name" in caplog.text


def test_a_run_goes_on_with_its_teacher_and_data_at_another_place(values, teacher, shapes, tmp_path, caplog):
    """As after a move, or on a cluster whose jobs copy the data to a disk of their own."""
    places = {"teacher": str(teacher), "data": {"name": "npz", "path": str(shapes)}}
    straight, _ = run({**values, **places, "run": str(tmp_path / "straight")}, steps=4)
    config, _ = run({**values, **places}, steps=2)
    moved = {
        "teacher": str(shutil.copytree(teacher, tmp_path / "moved")),
        "data": {"name": "npz", "path": str(shutil.copy(shapes, tmp_path / "moved.npz"))},
    }
    run({**values, **moved}, steps=4)
    assert "this run began" not in caplog.text
    logs = [(each.run / "metrics.jsonl").read_text() for each in (config, straight)]
    assert logs[0] == logs[1]
    assert read_yaml(config.run / "config.yaml")["data"]["path"] == moved["data"]["path"]


def test_other_teachers_or_data_at_another_place_are_refused_as_long_as_they_are_named(
    values, teacher, shapes, tmp_path
):
    places = {"teacher": {"one": str(teacher)}, "data": {"name": "npz", "path": str(shapes)}}
    config, _ = run({**values, **places, "losses": [{"name": "output"}]}, steps=2)
    with np.load(shapes) as arrays:
        other = tmp_path / "other.npz"
        np.savez(other, arr_0=255 - arrays["arr_0"], arr_1=arrays["arr_1"])
    write_teacher(tmp_path / "other", seed=5)
    begun = (config.run / "config.yaml").read_text()
    for key, change, words in (
        ("data", {"name": "npz", "path": str(other)}, r"data\.path may .*\(data: other samples than"),
        ("teacher", {"one": str(tmp_path / "other")}, r"teacher may .*\(teacher one: has other weights"),
        ("teacher", {"two": str(teacher)}, r"teacher may name another place, of the same teachers"),
    ):
        for _ in range(2):
            with pytest.raises(UserError, match=words):
                run({**values, **places, "losses": [{"name": "output"}], key: change}, steps=3)
        assert (config.run / "config.yaml").read_text() == begun
    (config.run / "inputs.json").unlink()
    with pytest.raises(UserError, match=r"has no inputs\.json to compare another data\.path with"):
        run({**values, **places, "losses": [{"name": "output"}], "data": {"name": "npz", "path": str(other)}}, steps=3)


def test_a_student_like_a_teacher_that_was_moved(values, tmp_path):
    """Of the teacher's config the student has its keywords; of another model nothing says what it was."""
    network = diffusers_dit()
    for name in ("teacher", "moved", "other"):
        network.save_pretrained(tmp_path / name)

    def changes(teacher: str, like: str = "teacher") -> dict:
        student = {"like": like if like == "teacher" else str(tmp_path / like), "num_layers": 1}
        task = {"name": "diffusion", "mask_ratio": None}
        return {
            **values,
            "task": task,
            "teacher": str(tmp_path / teacher),
            "student": student,
            "losses": [{"name": "output"}],
        }

    run(changes("teacher"), steps=1)
    run(changes("moved"), steps=2)
    with pytest.raises(UserError, match=r"student\.like: .*other, which is no teacher's, and nothing says what it was"):
        run(changes("moved", "other"), steps=3)
    shutil.rmtree(tmp_path / "teacher")
    shutil.rmtree(tmp_path / "moved")
    folder = values["run"]
    other = make(TrainConfig, merged(read_config(folder), {"teacher": str(tmp_path / "other"), "steps": 3}))
    assert other.student.options["like"] == str(tmp_path / "moved")
    assert dry_run(replace(other, estimate=EstimateConfig(measure=False))).steps == 3
    trained = train(folder, progress=False, teacher=str(tmp_path / "other"), steps=3)
    assert trained.step == 3
    assert read_yaml(trained.path / "config.yaml")["student"]["like"] == str(tmp_path / "other")


def test_a_glance_tells_splits_apart():
    known = [glance(DATASETS.build(Plugin("digits", {"split": split}))) for split in ("train", "validation")]
    assert not alike(*known) and all(0 < x < 1 for x in known[0]) and len(known[0]) == 8
    assert alike(known[0], [x + 2e-4 for x in known[0]])


def test_a_glance_at_few_samples_is_at_each(tmp_path):
    images = np.arange(3, dtype=np.float32).reshape(3, 1, 1, 1) * np.ones((3, 1, 8, 8), np.float32)
    np.savez(tmp_path / "few.npz", arr_0=images, arr_1=np.zeros(3, np.int64))
    known = glance(DATASETS.build(Plugin("npz", {"path": str(tmp_path / "few.npz")})))
    assert known == [0, 0, 0, 1, 0, 2]  # the label's mean, the latent's
    assert not alike(known, known[:4])


def test_a_fingerprint_is_of_every_tensor(teacher):
    model = loading.load(teacher)
    before = fingerprint(model)
    assert before == fingerprint(loading.load(teacher))
    for parameter in model.parameters():
        first = parameter.data.view(-1)[:1].clone()
        parameter.data.view(-1)[:1] += 1
        assert fingerprint(model) != before
        parameter.data.view(-1)[:1] = first


def test_a_fingerprint_is_of_weights_in_8_bits_too(teacher, tmp_path):
    """Of which names alone had counted: a LoRA that was fused into them, or another teacher, went unseen."""
    model = loading.load(teacher)
    model.get_parameter("en_inblocks.0.mlp.fc1.weight").data.neg_()
    model.save_pretrained(tmp_path)
    first, again, other = (fingerprint(loading.load(place, precision="int8")) for place in (teacher, teacher, tmp_path))
    assert first == again != other
