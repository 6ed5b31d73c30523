"""Classes go from the data into the student by number and name, those seen are sampled, a teacher's are compared."""

import json
import logging

import numpy as np
import pytest
import yaml
from encoded import config as encoding
from encoded import encode, pictures, write_folder
from runs import run

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.data.datasets import DATASETS, Dataset
from dit_shd.data.datasets.latents import Latents
from dit_shd.data.encoding import encode_to_shards
from dit_shd.data.latent_shards import open_tensors, shard_files
from dit_shd.diffusion.class_names import compare, learned, numbers
from dit_shd.diffusion.denoiser import known_classes
from dit_shd.diffusion.generation import sample_to_file
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.diffusion.sampler import label_plan, sample
from dit_shd.models import loading
from dit_shd.models.families import mdt
from dit_shd.models.families.dit import DiT

QUICK = dict(steps=2, guidance=1.0, seed=1)
SIZES = dict(sample_size=8, patch_size=4, in_channels=1, num_layers=1, num_attention_heads=1, attention_head_dim=4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Nine pictures in the folders 3, 5 and 9."""
    root = tmp_path_factory.mktemp("folders")
    write_folder(root / "named", pictures(9), np.arange(9) // 3)
    for old, new in (("class0", "3"), ("class1", "5"), ("class2", "9")):
        (root / "named" / old).rename(root / "named" / new)
    return root / "named"


def labels(latents):
    return np.concatenate([open_tensors(file).get_tensor("label") for file in shard_files(latents)]).tolist()


def alone(values, **changes):
    """A config without a teacher, whose student's number of classes is not given."""
    student = {k: v for k, v in values["student"].items() if k != "num_classes"}
    return {**values, "teacher": None, "losses": [], "steps": 1, "batch_size": 2, "student": student, **changes}


# Encoding


def test_folders_get_the_numbers_that_are_given(folders, tmp_path):
    assert labels(encode(folders, tmp_path / "plain")) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    kept = encode(folders, tmp_path / "kept", classes={9: 9, 3: 3, 5: 5})
    assert labels(kept) == [3, 3, 3, 5, 5, 5, 9, 9, 9]
    data = Latents(kept)
    assert data.classes == 10
    assert data.class_names == ("", "", "", "3", "", "5", "", "", "", "9")
    assert labels(encode(folders, tmp_path / "other", classes={"3": 1, "5": 0, "9": 2})) == [1, 1, 1, 0, 0, 0, 2, 2, 2]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({3: 3, 5: 5}, "wanted a number for each class, found none for '9'"),
        ({3: 3, 5: 5, 9: 9, 7: 7}, "there is no class '7' among the images'; there is '3', '5', '9'"),
        ({3: 3, 5: 3, 9: 9}, "found 3 twice"),
        ({3: -1, 5: 5, 9: 9}, "wanted numbers from 0 to 1048575"),
        ({3: 0, 5: 1, 9: 2**40}, "wanted numbers from 0"),
        ({3: "x", 5: 1, 9: 2}, "wanted a whole number"),
    ],
)
def test_numbers_that_are_none_write_nothing(folders, tmp_path, classes, message):
    with pytest.raises(UserError, match=message):
        encode_to_shards(encoding(folders, tmp_path / "out", classes=classes))
    assert not (tmp_path / "out").exists()


# From the data into the student


def test_the_students_classes_are_the_datas(folders, values, tmp_path):
    """Their number where none is given, and their names, in the run folder, the export and its card."""
    data = {"name": "latents", "path": str(encode(folders, tmp_path / "l"))}
    student = {**values["student"], "in_channels": 3}
    config, _ = run(alone(values, data=data, student={k: v for k, v in student.items() if k != "num_classes"}))
    told = yaml.safe_load((config.run / "config.yaml").read_text())
    assert told["student"]["num_classes"] == 3
    model = loading.load(config.run)
    assert list(model.config.class_names) == ["3", "5", "9"]
    assert model.y_embedder.embedding_table.weight.shape[0] == 3 + 1
    assert "3 of 3 were trained: 0 3, 1 5, 2 9." in (config.run / "student" / "README.md").read_text()
    model.save_pretrained(tmp_path / "again")
    assert list(loading.load(tmp_path / "again").config.class_names) == ["3", "5", "9"]


def test_only_classes_that_the_training_saw_are_sampled(folders, values, tmp_path, caplog):
    """A student of 12 classes that saw 3, 5 and 9: drawn, balanced, from Python, by the command and in evaluations."""
    data = {"name": "latents", "path": str(encode(folders, tmp_path / "l", classes={3: 3, 5: 5, 9: 9}))}
    student = {**values["student"], "in_channels": 3, "num_classes": 12}
    evaluation = {"every": 1, "count": 6, "steps": 2, "keep": True}
    config, _ = run(alone(values, data=data, student=student, evaluation=evaluation))
    assert "the student knows 12, the data has images of 3 (3 '3', 5 '5', 9 '9')" in caplog.text
    seen = np.load(config.run / "evaluations" / "step_00000001.npz")["arr_1"]
    assert seen.tolist() == [3, 5, 9, 3, 5, 9]
    model = loading.load(config.run)
    drawn = sample(model, 60, **{**QUICK, "steps": 1})[1]
    assert np.bincount(drawn, minlength=12)[[3, 5, 9]].min() > 8
    assert set(drawn) == {3, 5, 9}
    out = sample_to_file(SampleConfig(run=str(config.run), count=6, steps=2, guidance=1.0, out=tmp_path / "s.npz"))
    assert set(np.load(out)["arr_1"]) <= {3, 5, 9}
    assert sample(model, 2, labels=[9, 3], **QUICK)[1].tolist() == [9, 3]
    with pytest.raises(UserError, match="training never saw class 4; it saw 3, 5, 9"):
        sample(model, 2, labels=[3, 4], **QUICK)


def test_labels_with_gaps_and_no_names(values, tmp_path):
    images = np.load(values["data"]["path"])["arr_0"]
    np.savez(tmp_path / "gap.npz", images, np.arange(60) % 2 * 2)
    config, _ = run(alone(values, data={"name": "npz", "path": str(tmp_path / "gap.npz")}))
    model = loading.load(config.run)
    assert (model.config.num_classes, list(model.config.class_names)) == (3, ["", None, ""])
    assert set(sample(model, 20, **{**QUICK, "steps": 1})[1]) == {0, 2}
    assert "2 of 3 were trained: 0, 2." in (config.run / "student" / "README.md").read_text()


def test_all_classes_without_names_are_nothing_to_tell(values):
    config, _ = run(alone(values))
    model = loading.load(config.run)
    assert model.config.class_names is None
    assert known_classes(model) == [0, 1, 2]
    assert "## Classes" not in (config.run / "student" / "README.md").read_text()


def test_a_run_begun_by_an_older_version_keeps_its_classes(values):
    """It had a family's default, 1000; neither its config.yaml nor its export say anything of classes."""
    config, _ = run(alone(values, student={**values["student"], "num_classes": 1000}))
    told = yaml.safe_load((config.run / "config.yaml").read_text())
    del told["student"]["num_classes"]
    (config.run / "config.yaml").write_text(yaml.safe_dump(told))
    export = config.run / "student" / "config.json"
    export.write_text(json.dumps({k: v for k, v in json.loads(export.read_text()).items() if k != "class_names"}))
    assert known_classes(loading.load(config.run)) == list(range(1000))
    again, steps = run({**alone(values), "steps": 2})
    assert len(steps) == 1
    assert "num_classes" not in yaml.safe_load((again.run / "config.yaml").read_text())["student"]


def test_more_classes_in_the_data_are_refused(values):
    with pytest.raises(UserError, match="student: knows 2 classes, the data has 3"):
        run(alone(values, student={**values["student"], "num_classes": 2}))


@pytest.mark.parametrize("names", [["a"], ["a", 3], "ab", {"0": "a"}])
def test_names_that_are_none_in_a_models_config(tmp_path, names):
    DiT(**SIZES, num_classes=2).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "class_names": names}))
    with pytest.raises(UserError, match="class_names: wanted"):
        loading.load(tmp_path)


# The teacher's classes


class Data(Dataset):
    """Labels and names alone."""

    shape = (1, 8, 8)

    def __init__(self, labels, names=None):
        self._labels, self.class_names = np.array(labels), names if names is None else tuple(names)
        self.classes = max(labels) + 1 if names is None else len(names)

    def __len__(self):
        return len(self._labels)

    def batch(self, *_):
        raise NotImplementedError

    images = batch

    def labels(self):
        return self._labels


DIGITS = list("0123456789")


@pytest.mark.parametrize(
    ("theirs", "data", "right", "said"),
    [
        (DIGITS, Data([0, 1, 2], "359"), False, "classes='{3: 3, 5: 5, 9: 9}' keeps the teacher's numbers"),
        (DIGITS, Data([3, 5, 9], ["", "", "", "3", "", "5", "", "", "", "9"]), True, "3 classes are the teacher's"),
        (DIGITS, Data(range(10), DIGITS), True, "10 classes are the teacher's by name"),
        (DIGITS, Data([0, 1], ["cat", "dog"]), True, "label i is taught as the teacher's class i (0 'cat', 1 'dog')"),
        (DIGITS, Data(range(3)), True, "the data's classes have no names: label i is taught as"),
        (None, Data([0, 1, 2], "359"), True, "the teacher's classes have no names: label i is taught as"),
        (["cat", "dog", "cow"], Data([0, 1], ["cat", "cow"]), False, "1 is 'cow' in the data, which is its class 2"),
        (["cat", "dog", "cow"], Data([0, 1], ["cat", "hen"]), False, "none of its classes, and 'dog' in the teacher"),
        (["cat", "dog", "cow"], Data([0, 1], ["cat", "dog"]), True, "2 classes are the teacher's by name"),
        (["cat", "", "cow"], Data([0, 1], ["cat", "dog"]), False, "no such class in the teacher"),
        (["a", None, "c"], Data([0, 1, 2]), False, "the teacher never saw the data's classes 1"),
        (["0", "3", "10"], Data(range(3), ["10x", "3", "0"]), False, "2 of the data's 3 classes are others"),
        (["a", "b", "c"], Data(range(3), "012"), True, "numbers for names in one of teacher and data"),
    ],
)  # fmt: skip
def test_names_are_compared_where_both_have_them(theirs, data, right, said):
    teacher = DiT(**SIZES, num_classes=len(theirs or DIGITS), class_names=theirs)
    told, found = compare(teacher, data)
    assert found == right
    assert said in told


def test_imagenet_by_its_wordnet_ids():
    """Of a teacher of 1000 classes without names. tench 0, goldfish 1, golden retriever 207, tabby cat 281."""
    teacher = DiT(**SIZES, num_classes=1000)
    ids = ["n01440764", "n01443537", "n02099601", "n02123045"]
    told, right = compare(teacher, Data([0, 1, 2, 3], ids))
    assert not right
    assert "2 of the data's 4" in told
    assert "classes='{n01440764: 0, n01443537: 1, n02099601: 207, n02123045: 281}'" in told
    kept = [""] * 282
    for name, number in zip(ids, (0, 1, 207, 281)):
        kept[number] = name
    assert compare(teacher, Data([0, 1, 207, 281], kept))[1]
    assert not compare(teacher, Data([0], ["n99999999"]))[1]


def test_the_digits_teacher_has_names():
    assert list(loading.load("asset:digits_teacher").config.class_names) == DIGITS
    assert learned(DATASETS.build(Plugin("digits")), 10) == DIGITS


@pytest.mark.parametrize("choice", ["refuse", "warn", "no"])
def test_a_run_with_a_teacher_of_other_classes(folders, values, tmp_path, caplog, choice):
    """Folders 3, 5 and 9 became 0, 1 and 2 of a teacher that has all ten: refused, warned of, or said."""
    caplog.set_level(logging.INFO, "dit_shd")
    teacher = {**values["student"], "in_channels": 3, "num_attention_heads": 4, "num_classes": 10}
    teacher.pop("name")
    mdt.MDTv2(**teacher, class_names=DIGITS).save_pretrained(tmp_path / "ten")
    student = {k: v for k, v in values["student"].items() if k != "num_classes"} | {"in_channels": 3}
    changes = {"student": student, "teacher": str(tmp_path / "ten"), "check_teacher": choice, "steps": 1}
    changes["data"] = {"name": "latents", "path": str(encode(folders, tmp_path / "l"))}
    told = "class 0 is '3' in the data, which is its class 3, and '0' in the teacher"
    if choice == "refuse":
        with pytest.raises(UserError, match=told):
            run({**values, **changes})
        assert not (tmp_path / "run").exists()
        return
    run({**values, **changes})
    assert [told in record.getMessage() for record in caplog.records].count(True) == 1


def test_a_model_of_1000_classes_without_names_has_those_of_imagenet():
    model = DiT(num_attention_heads=2, attention_head_dim=4, num_layers=1, sample_size=4, patch_size=2, in_channels=1)
    assert numbers(["golden retriever", "n01440764", "Goldfish"], model) == [207, 0, 1]
    with pytest.raises(UserError, match="several classes are named 'crane': 134, 517; give a number"):
        numbers(["crane"], model)
    with pytest.raises(UserError, match="found 'cat', and the model's classes have no names"):
        numbers(["cat"], DiT(**{**model.config, "num_classes": 3}))


def test_names_that_hold_commas():
    """Each part names the class, but where it is the name of another; several names of one list are told apart."""
    names = ["cat", "dog", "cat, dog", "tench, Tinca tinca"]
    model = DiT(**SIZES, num_classes=4, class_names=names)
    assert numbers(["cat", "dog", "tinca TINCA", "tench"], model) == [0, 1, 3, 3]
    with pytest.raises(UserError, match=r"labels: 'cat, dog' has a comma; give one of its parts, or the number"):
        sample(model, labels=["cat, dog"])


def test_classes_at_random_are_of_the_seed():
    plans = [label_plan(SampleConfig(seed=seed, labels="random"), range(10), range(40)).tolist() for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]
