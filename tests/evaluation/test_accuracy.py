"""Accuracy against counting by hand, its interval against scipy's, and the task that evaluates it."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.stats import binomtest
from two_process_jobs import read, said

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.data.augmentation import ImageInput
from dit_shd.data.datasets import DATASETS
from dit_shd.evaluation.accuracy import Accuracy, all_misnamed, count_correct, measure_accuracy, misnamed, wilson
from dit_shd.tasks.classification import AccuracyEvaluation, Classification


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 40), (40, 40), (3, 40), (7777, 10000)])
def test_the_interval_is_wilsons(successes, trials):
    wanted = binomtest(successes, trials).proportion_ci(0.95, "wilson")
    assert wilson(successes, trials) == pytest.approx((wanted.low, wanted.high), abs=1e-7)


def test_what_is_counted_is_what_a_sort_says():
    r = np.random.default_rng(0)
    logits, labels = r.standard_normal((200, 12)), r.integers(0, 12, 200)
    ranks = [(row > row[label]).sum() for row, label in zip(logits, labels)]
    wanted = {1: sum(rank < 1 for rank in ranks), 5: sum(rank < 5 for rank in ranks)}
    found = count_correct(torch.from_numpy(logits), torch.from_numpy(labels))
    assert found == Accuracy(200, wanted)
    figures = found.figures()
    assert figures["top1"] == wanted[1] / 200 and figures["top1_low"] < figures["top1"] < figures["top1_high"]
    assert figures["images"] == 200


def test_a_model_that_knows_nothing_is_no_better_than_chance():
    """Equal logits are no correct answer for every class."""
    found = count_correct(torch.zeros(100, 10), torch.arange(100) % 10)
    assert found.correct == {1: 10, 5: 50}


def test_top_5_of_5_classes_says_nothing_and_is_left_out():
    assert count_correct(torch.eye(5), torch.arange(5)) == Accuracy(5, {1: 5})


def test_logits_that_are_no_numbers_are_refused():
    with pytest.raises(UserError, match="logits are not finite"):
        count_correct(torch.tensor([[0.0, float("nan")]]), torch.tensor([1]))


def test_shares_of_a_dataset_add_up():
    data = DATASETS.build(Plugin("digits", {"split": "validation"}))

    def predict(pixels):
        return torch.stack([(pixels.sum((1, 2, 3)) * (k + 1)).sin() for k in range(10)], dim=1)

    def transform(image):
        return torch.from_numpy(image).permute(2, 0, 1) / 255

    cpu = torch.device("cpu")
    whole = measure_accuracy(predict, data, transform, range(len(data)), cpu, batch_size=7)
    parts = [measure_accuracy(predict, data, transform, range(i, len(data), 3), cpu) for i in range(3)]
    assert whole == sum(parts, Accuracy(0, {})) and whole.images == 500


def test_an_image_that_cannot_be_decoded_is_left_out_and_no_other_taken_twice(tmp_path, caplog):
    for name, shade in (("cat", 10), ("dog", 200)):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (4, 4), (shade,) * 3).save(tmp_path / name / f"{i}.png")
    for i in range(2):
        (tmp_path / "dog" / f"{i}.png").write_text("no image")
    data = DATASETS.build(Plugin("images", {"path": str(tmp_path)}))

    def measured(indices):
        def predict(pixels):
            return torch.stack([torch.zeros(len(pixels)), torch.ones(len(pixels))], dim=1)

        def transform(image):
            return torch.from_numpy(image).permute(2, 0, 1) / 255

        return measure_accuracy(predict, data, transform, indices, torch.device("cpu"), batch_size=2)

    assert measured(range(6)) == Accuracy(4, {1: 1}) and "dog/0.png: left out" in caplog.text
    assert measured([3, 4]) == Accuracy(0, {1: 0})  # a process's share, which is added to others'
    with pytest.raises(UserError, match="wanted images that can be decoded, found none"):
        measured([3, 4]).figures()


@pytest.mark.parametrize(
    ("known", "names", "words"),
    [
        (["cat", "dog", "owl"], ("cat", "owl", "yak"), "class 1 is 'owl', not 'dog'"),
        (["0", "1", "2"], ("1", "2", "3"), "class 0 is '1', not '0'"),
        (["cat", "dog"], ("cat", "dog"), None),
        (["n01440764", "n01443537"], ("tench", "goldfish"), None),
        (["ant", "bee", "cat"], ("Cat", "Ant", "Bee"), "class 0 is 'Cat', not 'ant'"),
        (["sea lion", "tench"], ("tench", "Sea_Lion"), "class 0 is 'tench', not 'sea lion'"),
        (["sea lion", "red-fox", "tench"], ("Sea_Lion", "red fox", "Tench"), None),
        (["A", "a", "b"], ("a", "A", "b"), "class 0 is 'a', not 'A'"),
        (["cat", None, ""], ("cat", "dog", "owl"), None),
        (None, ("cat",), None),
        (["cat"], None, None),
    ],
)
def test_classes_of_the_same_number_and_other_names(known, names, words):
    assert misnamed(known, names) == words


@pytest.mark.parametrize(
    ("known", "names", "words"),
    [
        (["2", "9"], ("neun", "zwei"), "class 0 is 'neun', not '2'"),
        (["", "tench"], ("a", "n01440764"), "class 1 is 'n01440764', not 'tench'"),
        (["cat", "dog"], ("yak", "Cat"), None),
        (["cat", ""], (None, "dog"), None),
        ([], (), None),
        (None, ("cat",), None),
        (["cat"], None, None),
    ],
)
def test_classes_of_which_no_name_is_in_both(known, names, words):
    line = None if words is None else f"no name is in both, {words}: classes are matched by place"
    assert all_misnamed(known, names) == line


def test_labels_are_those_of_the_images_that_are_whole(tmp_path):
    """A broken image in the middle of a batch of two classes."""
    for name, shade in (("cat", 10), ("dog", 200)):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (4, 4), (shade,) * 3).save(tmp_path / name / f"{i}.png")
    (tmp_path / "cat" / "0.png").write_text("no image")
    data = DATASETS.build(Plugin("images", {"path": str(tmp_path)}))

    def predict(pixels):
        bright = (pixels.mean((1, 2, 3)) > 0.5).float()
        return torch.stack([1 - bright, bright], dim=1)

    def transform(image):
        return torch.tensor(image).permute(2, 0, 1) / 255

    assert measure_accuracy(predict, data, transform, range(4), torch.device("cpu"), 4) == Accuracy(3, {1: 3})


class Corner(torch.nn.Linear):
    """Class 0 where the first pixel is dark."""

    def forward(self, pixels):
        return super().forward(pixels[:, 0, :1, 0] - 0.5)


@pytest.mark.parametrize(("of_model", "crop", "top1"), [(1.0, None, 1.0), (1.0, 0.5, 0.5), (0.5, 1.0, 1.0)])
def test_a_task_takes_the_crop_that_it_is_told(of_model, crop, top1, tmp_path):
    """Of white images, of which one class has a dark border."""
    for name, border in (("dark", 0), ("white", 255)):
        (tmp_path / name).mkdir()
        ImageOps.expand(Image.new("L", (20, 20), 255), 4, border).save(tmp_path / name / "0.png")
    data, model = Plugin("images", {"path": str(tmp_path)}), Corner(1, 2)
    model.input = ImageInput((1, 28, 28), (0.0,), (1.0,), of_model)
    model.load_state_dict({"weight": torch.tensor([[-1.0], [1.0]]), "bias": torch.zeros(2)})
    task = Classification(evaluation=AccuracyEvaluation(data, crop))
    task.dataset = DATASETS.build(data)
    assert task.evaluate(model, tmp_path, 0)["top1"] == top1


@pytest.mark.two_processes("accuracy")
def test_two_processes_take_each_its_share_of_the_images(by_two):
    alone = read(by_two, "alone.json")
    assert alone["images"] == 500 and said(by_two) == [[alone], [None]]
