"""Classification: what is refused and what is told; a run and its accuracy."""

import time

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from runs import rows, run
from small_classifiers import GRAY, STUDENT, TINY, classification

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.data import augmentation
from dit_shd.data.datasets import DATASETS
from dit_shd.models import loading
from dit_shd.models.families import FAMILIES
from dit_shd.profiling import meta
from dit_shd.tasks.classification import AccuracyEvaluation, Classification


def test_two_heads_that_learn_through_their_mean_are_told():
    """DeiT's distillation has a target for each, and timm's switch for it stays off."""
    task, student, _ = classification()
    assert not task.remarks(student)
    options = {k: v for k, v in STUDENT.items() if k != "name"} | {"model": "deit_tiny_distilled_patch16_224"}
    (line,) = task.remarks(FAMILIES.build(Plugin("timm", {**options, "num_classes": 10})))
    assert "learns through their mean alone" in line


@pytest.fixture
def values(tmp_path):
    """A tiny distillation of the digits, with a random teacher of 6 heads."""
    torch.manual_seed(1)
    teacher = {**GRAY, "model": "deit3_small_patch16_224", "num_classes": 10, "options": {**TINY, "num_heads": 6}}
    FAMILIES.build(Plugin("timm", teacher)).save_pretrained(tmp_path / "teacher")
    evaluation = {"data": {"name": "digits", "split": "validation"}}
    return {
        "run": str(tmp_path / "run"),
        "task": {"name": "classification", "evaluation": evaluation},
        "data": "digits",
        "student": STUDENT,
        "teacher": str(tmp_path / "teacher"),
        "check_teacher": "no",
        "losses": [{"name": "shd"}],
        "steps": 2,
        "batch_size": 8,
        "log_every": 1,
        "ema": [0.5, 0.0],
        "optimizer": {"name": "adamw", "lr": 1e-3},
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": {"name": "classification", "mixup": -1}}, r"task\.mixup: wanted a number from 0 to 100, found -1"),
        ({"task": {"name": "classification", "label_smoothing": 1}}, r"task\.label_smoothing: wanted a number below 1"),
        ({"task": {"name": "classification", "mixing": "epoch"}}, r"task\.mixing: wanted step | pair"),
        (
            {"task": {"name": "classification", "augmentation": {"flip": 2}}},
            r"task\.augmentation\.flip: wanted a number",
        ),
        (
            {"task": {"name": "classification", "augmentation": {"crp": [1, 1]}}},
            "unknown key 'crp', did you mean 'crop'",
        ),
        ({"student": {**STUDENT, "num_classes": 7}}, "^student: knows 7 classes, the data has 10$"),
        (
            {"student": {**STUDENT, "img_size": 14}},
            r"^teacher: takes images of \[1, 28, 28\].*the student's are \[1, 14",
        ),
        (
            {"student": {**STUDENT, "options": {**TINY, "proj_drop_rate": 0.1}}},
            "drops out with p=0.1; classification has",
        ),
        ({"student": {"name": "dit", "size": "S/2"}}, "^student: wanted an image classifier, as .* found DiT$"),
        ({"teacher": "asset:digits_teacher"}, "^asset:digits_teacher: wanted an image classifier, as .* found MDTv2$"),
        ({"task": "classification", "validate_every": 1}, r"task\.evaluation\.data: wanted the images that"),
        ({"check_teacher": "refuse"}, "knows the data's classes no better than chance"),
        ({"task": "diffusion"}, "holds TimmModel, whose forward takes pixels"),
        (
            {"student": {**STUDENT, "model": "deit_tiny_distilled_patch16_224"}},
            "16 patches each, with 2 .* and 1 in",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(values, change, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        run({**values, **change})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("vit_base_patch16_224", {"patch_drop_rate": 0.5}, r"network\.patch_drop drops out with prob=0\.5"),
        ("eva02_tiny_patch14_224", {"patch_drop_rate": 0.5}, r"network\.patch_drop drops out with prob=0\.5"),
        ("resnet10t", {"drop_block_rate": 0.1}, r"drop_block drops out with drop_prob=0\.1"),
        ("ghostnet_050", {}, r"network drops out with drop_rate=0\.2"),
        ("ghostnet_050", {"drop_rate": 0.0}, None),
        ("vit_base_patch16_224", {}, None),
    ],
)
def test_a_student_that_is_random_in_another_way_is_refused(name, options, found):
    """Its draws would depend on how a batch is divided. A teacher is in evaluation."""
    model = meta.build(Plugin("timm", {"model": name, "options": options}), "student")
    Classification().check_model("teacher", model)
    if found is None:
        Classification().check_model("student", model)
        return
    with pytest.raises(UserError, match=f"^student: .*{found}; classification has stochastic depth instead"):
        Classification().check_model("student", model)


def test_an_evaluation_of_other_classes_is_refused(values, tmp_path):
    """A folder that lacks one of the training's classes and has another: as many classes, with other numbers."""
    for part, names in (("train", "abc"), ("val", "acd")):
        for name in names:
            (tmp_path / part / name).mkdir(parents=True)
            Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / part / name / "0.png")
    data, evaluated = ({"name": "images", "path": str(tmp_path / part)} for part in ("train", "val"))
    task = {"name": "classification", "evaluation": {"data": evaluated}}
    with pytest.raises(UserError, match=r"data: wanted the classes of the data, .*; in it class 1 is 'c', not 'b'"):
        run({**values, "task": task, "data": data, "student": {**STUDENT, "num_classes": 3}, "teacher": None,
             "losses": [], "validate_every": 1})  # fmt: skip


def test_an_evaluation_whose_classes_have_other_names_is_told(values, tmp_path, caplog):
    """A folder of words in the order of their letters, beside digits."""
    for word in ("null", "eins", "zwei", "drei", "vier", "fuenf", "sechs", "sieben", "acht", "neun"):
        (tmp_path / word).mkdir()
        Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / word / "0.png")
    task = {**values["task"], "evaluation": {"data": {"name": "images", "path": str(tmp_path)}}}
    run({**values, "task": task, "validate_every": 2, "losses": [], "teacher": None, "steps": 1})
    line = (
        "task.evaluation.data: its classes are others than are learned: no name is in both, class 0 is 'acht', not '0'"
    )
    assert [text for text in caplog.messages if text.startswith(line)] == [f"{line}: classes are matched by place"]


def test_an_evaluation_on_what_is_learned_is_told(values, caplog):
    task = {**values["task"], "evaluation": {"data": "digits"}}
    run({**values, "task": task, "validate_every": 2, "losses": [], "teacher": None, "steps": 1})
    assert "data: are the images that are learned, so that the accuracy is not of held-out images" in caplog.text


def test_data_without_images_are_refused(values, tmp_path):
    file = tmp_path / "latents.npz"
    np.savez(file, arr_0=np.zeros((4, 1, 8, 8), np.float32), arr_1=np.arange(4))
    with pytest.raises(UserError, match="task: needs images of the data, which have labels, latents"):
        run({**values, "data": {"name": "npz", "path": str(file)}})


def test_images_of_one_class_are_refused_with_the_reason(values, tmp_path):
    """Of a folder of loose images, or a dataset whose column of labels has no usual name."""
    for i in range(3):
        Image.fromarray(np.full((28, 28), i, np.uint8)).save(tmp_path / f"{i}.png")
    data = {"name": "images", "path": str(tmp_path)}
    with pytest.raises(UserError, match=r"^data: wanted images of 2 classes .* found 1 .*all images are of one class"):
        run({**values, "data": data, "student": {**STUDENT, "num_classes": 1}, "teacher": None, "losses": []})


def test_a_run_is_evaluated_and_what_it_exports_is_loaded_by_timm(values, tmp_path, caplog):
    config, metrics = run({**values, "validate_every": 2})
    assert "so that the accuracy is not of held-out images" not in caplog.text
    assert {"plain/cross_entropy", "plain/shd"} <= metrics[0].keys()
    (figures,) = rows(config.run, "evaluations.jsonl")
    student = loading.load(config.run).eval()
    task = Classification(evaluation=AccuracyEvaluation())
    data = DATASETS.build(Plugin("digits", {"split": "validation"}))
    task.use(data, student)
    pixels = (torch.from_numpy(data.images()).permute(0, 3, 1, 2) / 255 - 0.13) / 0.31
    assert student.input.crop == 0.9  # so that evaluation is not all of the image
    centre = F.interpolate(pixels, 31, mode="bicubic", antialias=True)[..., 1:29, 1:29]
    near = (student(centre).argmax(1) == torch.from_numpy(data.labels())).float().mean()
    assert figures["top1"] == pytest.approx(float(near), abs=0.03)
    assert figures["top1_low"] < figures["top1"] < figures["top1_high"] and figures["images"] == 500
    assert figures["images_ema_0"] == 500 and 0 <= figures["top1_ema_0"] <= 1
    theirs = timm.create_model(f"local-dir:{config.run / 'student_ema_0'}", pretrained=True)
    assert theirs.pretrained_cfg["label_names"] == list("0123456789")
    card = (config.run / "student" / "README.md").read_text()
    assert "- image-classification" in card and "diffusion" not in card


def test_a_teacher_may_be_held_in_bfloat16(values, tmp_path):
    """It was given images in float32, which its first map does not take."""
    plain, low = (
        run({**values, "steps": 1, "losses": [{"name": "kd"}], "teacher_precision": how, "run": str(tmp_path / how)})[1]
        for how in ("no", "bf16")
    )
    assert low[0]["plain/kd"] == pytest.approx(plain[0]["plain/kd"], rel=0.05)
    task, teacher, _ = classification()
    (finding,) = task.check_teacher(teacher.bfloat16(), 0, torch.device("cpu"), measure=True)
    assert finding.message.startswith("teacher: top-1 ")


def test_all_the_losses_of_table_4_train_together(values):
    losses = [{"name": "nkd"}, {"name": "vitkd"}, {"name": "kd", "temperature": 2.0}, {"name": "shd"}]
    student = {**STUDENT, "options": {**TINY, "depth": 3}}
    _, metrics = run({**values, "student": student, "losses": losses, "teacher": deeper(values["teacher"])})
    total = sum(metrics[0][f"plain/{name}"] for name in ("cross_entropy", "nkd", "vitkd", "kd"))
    assert metrics[0]["loss"] == pytest.approx(total + 2 * metrics[0]["plain/shd"], rel=1e-5)
    assert metrics[0]["plain/vitkd/generation"] > 0 and metrics[0]["plain/nkd/others"] > 0


def deeper(folder):
    """A teacher of 4 blocks beside the one of 2."""
    options = {"num_classes": 10, "options": {**TINY, "num_heads": 6, "depth": 4}}
    teacher = Plugin("timm", {**GRAY, "model": "deit3_small_patch16_224", **options})
    FAMILIES.build(teacher).save_pretrained(f"{folder}_deep")
    return f"{folder}_deep"


def test_images_are_drawn_alike_beside_blocks_that_are_recomputed(tmp_path, monkeypatch):
    """Recomputed blocks set torch's generator, which torchvision's flips and crops draw from."""
    drawn, draw, image_of = {}, Classification.draw, augmentation.pil_image

    def noted(task, draws):
        (batch,) = draw(task, draws)
        drawn[draws.step] = task, draws, batch.pixels.clone()
        return [batch]

    def slow(*image):
        time.sleep(2e-3)  # between the seed and the first draw
        return image_of(*image)

    monkeypatch.setattr(Classification, "draw", noted)
    monkeypatch.setattr(augmentation, "pil_image", slow)
    values = {"task": {"name": "classification"}, "data": {"name": "digits"}, "student": STUDENT, "losses": []}
    values |= {"run": str(tmp_path / "run"), "steps": 6, "batch_size": 8, "gradient_checkpointing": True}
    run({**values, "optimizer": {"name": "adamw"}})
    assert len(drawn) == 6
    for task, draws, pixels in list(drawn.values()):
        assert torch.equal(draw(task, draws)[0].pixels, pixels)


@pytest.mark.parametrize(
    ("names", "count"), [([*"0123456789"], 0), ([*"1023456789"], 1), (None, 0), ([*"abcdefghij"], 0)]
)
def test_a_teachers_classes_are_compared_by_name(names, count):
    """As many classes in another order load and run; names of another kind say nothing."""
    task, teacher, _ = classification()
    task.dataset.class_names = [*"0123456789"]
    if names is not None:
        teacher.register_to_config(class_names=[*names])
    found = list(task.check_teacher(teacher, 0, torch.device("cpu"), measure=False))
    assert len(found) == count
    assert not count or "class 0 is '0', not '1'" in found[0].fault


class Knowing(torch.nn.Module):
    """A classifier without class names that is right about gray images, in some order of their classes."""

    input = augmentation.ImageInput((1, 28, 28), (0.0,), (1.0,), crop=1.0)

    def __init__(self, names):
        super().__init__()
        self.shades = torch.nn.Parameter(torch.tensor([20.0 * int(name) for name in names]) / 255)
        self.config = {"num_classes": len(names)}

    def forward(self, pixels):
        return -1e4 * (pixels.mean((1, 2, 3))[:, None] - self.shades).square()


def test_a_teacher_of_torchvisions_order_of_numbers_is_refused(tmp_path, caplog):
    """The folders 0 to 11 are 0, 1, 10, 11, 2, ... there: two of twelve places are the same, more than chance."""
    names = [str(number) for number in range(12)]
    for name in names:
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (28, 28), 20 * int(name)).save(tmp_path / "images" / name / f"{i}.png")
    task = Classification()
    task.dataset = DATASETS.build(Plugin("images", {"path": str(tmp_path / "images")}))
    for order in (names, sorted(names)):
        *_, last = task.check_teacher(Knowing(order), 0, torch.device("cpu"), measure=True)
        right = order == names
        share = "16.7%" if right else "100.0%"
        words = f"{share} in the order of torchvision's ImageFolder ('2' is class 2 here, 4 there)"
        assert last.message == f"teacher: has no class names; {words}"
        assert (last.fault is None) == right
        assert right or last.fault.startswith("it knows the classes in another order: top-1 16.7% of 48 images")
