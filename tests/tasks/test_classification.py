"""Classification: what a batch is, whatever it is divided into; soft targets; what is refused; a run and its accuracy.

That a run resumes, is divided, sharded and guarded as any other is tests/tasks/test_laws.py's.
"""

import copy
import time

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from runs import rows, run

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import Draws
from dit_shd.data import augmentation
from dit_shd.data.augmentation import Augmentation
from dit_shd.data.datasets import DATASETS
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses.shd import SHD
from dit_shd.models import loading
from dit_shd.models.families import FAMILIES
from dit_shd.profiling import meta
from dit_shd.tasks import Output
from dit_shd.tasks.classification import AccuracyEvaluation, Classification, ImageBatch

TINY = dict(patch_size=7, embed_dim=24, depth=2, num_heads=3)
GRAY = dict(in_chans=1, img_size=28, mean=[0.13], std=[0.31])
STUDENT = {"name": "timm", "model": "deit_tiny_patch16_224", **GRAY, "options": TINY, "drop_path_rate": 0.2}
WHOLE = Augmentation(crop=[1, 1], ratio=[1, 1], flip=0, policy=None, erasing=0)


def classification(batch_size=8, seed=0, **options):
    """The task of the digits and a tiny DeiT, and a function that draws positions of a step."""
    task = Classification(**options)
    torch.manual_seed(0)
    student = FAMILIES.build(Plugin("timm", {k: v for k, v in STUDENT.items() if k != "name"} | {"num_classes": 10}))
    task.use(DATASETS.build(Plugin("digits")), student)
    return task, student, lambda step, positions: task.draw(Draws(seed, step, positions, batch_size))[0]


def equal(one, other):
    return all(
        torch.equal(value, getattr(other, name)) if isinstance(value, torch.Tensor) else value == getattr(other, name)
        for name, value in vars(one).items()
    )


def rows_of(batch, chosen):
    """Some samples of a batch."""
    values = {k: v[chosen] if isinstance(v, torch.Tensor) else v for k, v in vars(batch).items()}
    return ImageBatch(**values)


def test_mixing_leaves_torchs_generator_alone(monkeypatch):
    """With workers a thread mixes while the main one takes a step, which it has seeded."""
    task, _, _ = classification()
    monkeypatch.setattr(torch, "set_rng_state", None)
    pixels = torch.rand(2, 1, 28, 28)
    mixed, _ = task._mixed(pixels.clone(), torch.tensor([1, 2]), Draws(0, 3, range(2), 2), 0)
    assert not torch.equal(mixed, pixels)


@pytest.mark.parametrize("mixing", ["step", "pair"])
@pytest.mark.parametrize("batch_size", [8, 7])
def test_a_batch_is_the_same_however_it_is_divided(mixing, batch_size):
    """Also in parts that cut a pair; the last of an odd batch is mixed with none."""
    _, _, draw = classification(batch_size, mixing=mixing)
    whole = draw(3, range(batch_size))
    for parts in ([range(4), range(4, batch_size)], [range(1), range(1, 3), range(3, batch_size)]):
        for part in parts:
            assert equal(draw(3, part), rows_of(whole, list(part)))
    assert not torch.equal(whole.pixels, draw(4, range(batch_size)).pixels)
    assert not torch.equal(whole.depth, draw(4, range(batch_size)).depth)
    if batch_size == 7:
        assert whole.targets[6].max() == pytest.approx(0.91)


def test_without_mixing_and_smoothing_targets_are_the_labels_and_an_epoch_has_every_image_once(shapes):
    task, student, draw = classification(8, mixup=0.0, cutmix=0.0, label_smoothing=0.0, augmentation=WHOLE)
    batch = draw(7, range(8))
    assert torch.equal(batch.labels, torch.from_numpy(task.dataset.labels()[batch.indices.numpy()]))
    assert torch.equal(batch.targets, F.one_hot(batch.labels, 10).float())
    task.use(DATASETS.build(Plugin("npz", {"path": str(shapes)})), student)
    seen = torch.cat([draw(step, range(8)).indices for step in range(15)])
    assert sorted(seen.tolist()) == sorted([*range(60)] * 2)


def test_two_heads_that_learn_through_their_mean_are_told():
    """DeiT's distillation has a target for each, and timm's switch for it stays off."""
    task, student, _ = classification()
    assert not task.remarks(student)
    options = {k: v for k, v in STUDENT.items() if k != "name"} | {"model": "deit_tiny_distilled_patch16_224"}
    (line,) = task.remarks(FAMILIES.build(Plugin("timm", {**options, "num_classes": 10})))
    assert "learns through their mean alone" in line


def test_copies_of_an_image_are_augmented_anew_and_lie_apart():
    _, _, draw = classification(8, mixup=0.0, cutmix=0.0, augmentation=Augmentation(repeats=3))
    batch = draw(0, range(8))
    assert batch.indices.tolist() == [*batch.indices[:3].tolist() * 2, *batch.indices[:2].tolist()]
    assert len(set(batch.indices.tolist())) == 3
    assert not torch.equal(batch.pixels[0], batch.pixels[3])
    following = draw(1, range(8)).indices
    assert not set(batch.indices.tolist()) & set(following.tolist())


def test_mixup_and_cutmix_are_those_of_their_papers():
    """Against the definitions: pixels and targets in the same share, or a rectangle and its area."""
    _, _, plain = classification(6, mixup=0.0, cutmix=0.0, label_smoothing=0.2, augmentation=WHOLE)
    first, second = plain(2, range(0, 6, 2)), plain(2, range(1, 6, 2))
    _, _, mixed = classification(6, mixup=0.8, cutmix=0.0, label_smoothing=0.2, augmentation=WHOLE, mixing="pair")
    found = mixed(2, range(0, 6, 2))
    shares = []
    for i in range(3):
        difference = first.pixels[i] - second.pixels[i]
        share = ((found.pixels[i] - second.pixels[i]) * difference).sum() / difference.square().sum()
        wanted = share * first.pixels[i] + (1 - share) * second.pixels[i]
        torch.testing.assert_close(found.pixels[i], wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.targets[i], share * first.targets[i] + (1 - share) * second.targets[i])
        assert found.labels[i] == (first if share > 0.5 else second).labels[i]
        shares.append(float(share))
    assert len({round(share, 4) for share in shares}) == 3
    _, _, cut = classification(6, mixup=0.0, cutmix=1.0, label_smoothing=0.2, augmentation=WHOLE)
    found = cut(2, range(0, 6, 2))
    differs = (first.pixels != second.pixels).any(0)
    taken = ((found.pixels == second.pixels).all(0) & differs)[0]
    inside = torch.zeros(28, 28, dtype=torch.bool)
    y, x = torch.nonzero(taken, as_tuple=True)
    inside[y.min() : y.max() + 1, x.min() : x.max() + 1] = True
    assert torch.equal(torch.where(inside, second.pixels, first.pixels), found.pixels)  # one rectangle for a step
    share = ((found.targets - second.targets) / (first.targets - second.targets))[first.targets != second.targets]
    assert share.std() < 1e-5 and 0 < share[0] < 1 - taken.float().mean() + 1e-6


def test_the_loss_is_cross_entropy_with_soft_targets():
    task, _, draw = classification()
    batch = draw(0, range(8))
    logits = torch.randn(8, 10)
    found = task.losses(Output(logits), batch)["cross_entropy"]
    torch.testing.assert_close(found, F.cross_entropy(logits, batch.targets, reduction="none"))


def test_the_student_leaves_out_what_the_batch_says_and_the_teacher_nothing():
    task, student, draw = classification()
    batch = draw(0, range(8))
    student.train()
    first, again = (task.predict(student, batch).prediction for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, task.predict(student, draw(1, range(8)).to("cpu")).prediction)
    halves = [task.predict(student, draw(0, part)).prediction for part in (range(4), range(4, 8))]
    torch.testing.assert_close(torch.cat(halves), first, rtol=1e-4, atol=1e-5)


def test_a_teacher_of_another_normalisation_sees_the_same_images():
    task, student, draw = classification()
    task.dataset = DATASETS.build(Plugin("digits"))
    other = copy.deepcopy(student).eval()
    with torch.no_grad():  # the same function of images in [0, 1] under mean 0.5 and std 0.25
        weight, bias = other.network.patch_embed.proj.weight, other.network.patch_embed.proj.bias
        bias += weight.sum((1, 2, 3)) * (0.5 - 0.13) / 0.31
        weight *= 0.25 / 0.31
    other.input = type(student.input)(student.input.shape, (0.5,), (0.25,))
    batch = draw(0, range(8))
    student.eval()
    for _ in range(2):
        torch.testing.assert_close(
            task.predict(other, batch).prediction, task.predict(student, batch).prediction, rtol=1e-3, atol=1e-4
        )
        loss = Distiller(task, student, [SHD()])(batch, other)[1]["shd"]  # which looks at the teacher's layers first
        assert abs(loss) < 1e-4, "their maps are the same, too"


# What is refused


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


# A run


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
