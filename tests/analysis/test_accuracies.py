"""dit-shd accuracy: a model by itself, the students of a run, and what is refused."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dit_shd.cli.program import main
from dit_shd.core.plugins import Plugin
from dit_shd.data.datasets import DATASETS
from dit_shd.evaluation.accuracy import wilson
from dit_shd.models.families import FAMILIES

GRAY = dict(num_classes=10, in_chans=1, img_size=28, mean=[0.13], std=[0.31])
TINY = dict(patch_size=7, embed_dim=24, depth=1, num_heads=3)


def save(folder, seed, **changes):
    torch.manual_seed(seed)
    model = FAMILIES.build(Plugin("timm", {"model": "deit_tiny_patch16_224", **GRAY, "options": TINY, **changes}))
    model.save_pretrained(folder)
    return model.eval()


def predicted(model, images):
    with torch.no_grad():
        return model((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.13) / 0.31)


def test_a_run_s_students_and_a_model_are_measured_by_the_run_s_images(tmp_path, capsys):
    """Without a crop inputs are the images themselves, so that the shares can be counted by hand."""
    run, data = tmp_path / "run", {"name": "digits", "split": "validation"}
    models = {name: save(run / name, seed) for seed, name in enumerate(("student", "student_ema_0"))}
    config = {"task": {"name": "classification", "evaluation": {"data": data, "crop": 1.0}}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["accuracy", str(run), f"out={tmp_path / 'a.json'}"]) == 0
    lines, figures = capsys.readouterr().out.splitlines(), json.loads((tmp_path / "a.json").read_text())
    images, labels = (
        getattr(DATASETS.build(Plugin("digits", {"split": "validation"})), k)() for k in ("images", "labels")
    )
    for name, model in models.items():
        order = predicted(model, images).argsort(1, descending=True).numpy()
        counts = [int((order[:, :k] == labels[:, None]).sum()) for k in (1, 5)]
        assert [figures[name]["top1"], figures[name]["top5"]] == [count / 500 for count in counts]
        low, high = wilson(counts[0], 500)
        (line,) = (line for line in lines if line.split()[0] == name)
        assert f"{counts[0] / 5:.2f} [{100 * low:.2f}, {100 * high:.2f}]" in line
    assert main(["accuracy", str(run / "student_ema_0")]) == 0
    assert f"{100 * figures['student_ema_0']['top1']:.2f} [" in capsys.readouterr().out


def test_a_model_that_lies_in_a_run_and_is_no_student_of_it_is_not_of_it(tmp_path, capsys):
    run, data = tmp_path / "run", {"name": "digits", "split": "validation"}
    for name in ("student", "other"):
        save(run / name, 0)
    config = {"task": {"name": "classification", "evaluation": {"data": data, "crop": 1.0}}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["accuracy", str(run / "student")]) == 0
    assert main(["accuracy", str(run / "other")]) == 2
    assert "found none, and no run of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({}, [], "data: wanted the images to measure on, found none, and no run of"),
        ({}, ["data=digts"], "no plug-in called 'digts', did you mean 'digits'"),
        ({}, ["data={name: npz, path: latents.npz}"], "data: wanted images, found labels, latents"),
        ({"num_classes": 7}, ["data=digits"], "model: knows 7 classes, the data has 10"),
        (
            {"class_names": ["1", "0", *"23456789"]},
            ["data=digits"],
            "model: the data's classes are others than it knows: class 0 is '0', not '1'",
        ),
        ({}, ["data=digits", "crop=2"], "crop: wanted a number from 0.05 to 1, found 2"),
        ({}, ["data=digits", "out=latents.npz"], "latents.npz: is there already; choose another out=FILE"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(tmp_path, monkeypatch, capsys, changes, words, message):
    monkeypatch.chdir(tmp_path)
    save("model", 0, **changes)
    np.savez("latents.npz", arr_0=np.zeros((4, 1, 8, 8), np.float32), arr_1=np.arange(4))
    assert main(["accuracy", "model", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_classes_of_other_names_throughout_are_told_and_measured(tmp_path, caplog):
    save(tmp_path / "model", 0, class_names=list("abcdefghij"))
    assert main(["accuracy", str(tmp_path / "model"), "data=digits"]) == 0
    line = "no name is in both, class 0 is '0', not 'a': classes are matched by place"
    assert f"model: the data's classes are others than it knows: {line}" in caplog.messages


def test_a_model_without_class_names_may_have_another_order(tmp_path, caplog):
    for name in range(12):
        (tmp_path / "images" / str(name)).mkdir(parents=True)
        Image.new("L", (28, 28), 20 * name).save(tmp_path / "images" / str(name) / "0.png")
    line = "model: has no class names; if it learned classes in the order of torchvision's"
    for names in (None, [str(name) for name in range(12)]):
        save(tmp_path / "model", 0, num_classes=12, class_names=names)
        caplog.clear()
        assert main(["accuracy", str(tmp_path / "model"), f"data={{name: images, path: {tmp_path / 'images'}}}"]) == 0
        assert (names is None) == any(line in message for message in caplog.messages)


def test_a_model_that_classifies_nothing_is_refused(capsys):
    assert main(["accuracy", "asset:digits_teacher", "data=digits"]) == 2
    assert (
        "asset:digits_teacher: wanted an image classifier, as {name: timm, model: ...}, found MDTv2"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("words", "warned"),
    [
        ("data={name: images, path: link}", True),
        ("data={name: images, path: others}", False),
        ("data=digits", False),
        ("", False),
    ],
)
def test_images_that_the_run_learned_from_are_said_to_be_so(tmp_path, monkeypatch, caplog, words, warned):
    """Also by another path; the run's validation images are other ones."""
    monkeypatch.chdir(tmp_path)
    for folder in ("set", "others"):
        for label in "0123456789":
            (tmp_path / folder / label).mkdir(parents=True)
            Image.new("L", (28, 28), int(label)).save(tmp_path / folder / label / "0.png")
    (tmp_path / "link").symlink_to("set")
    save(tmp_path / "run" / "student", 0)
    task = {"name": "classification", "evaluation": {"data": {"name": "digits", "split": "validation"}}}
    data = {"name": "images", "path": str(tmp_path / "set"), "split": None}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"data": data, "task": task}))
    assert main(["accuracy", "run", *([words] if words else [])]) == 0
    line = "data: are the images that are learned, so that the accuracy is not of held-out images"
    assert (line in caplog.messages) == warned
