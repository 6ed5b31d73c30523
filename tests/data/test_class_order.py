"""The order of classes beside those of other programs that read folders."""

import numpy as np
import pytest
from PIL import Image
from timm.data.readers.reader_image_folder import find_images_and_targets
from torchvision.datasets import ImageFolder

from dit_shd.core.plugins import Plugin
from dit_shd.data.class_order import in_another_order, other_orders
from dit_shd.data.datasets import DATASETS

TORCHVISION, TIMM = "torchvision's ImageFolder", "timm"


@pytest.mark.parametrize(
    ("names", "differ"),
    [
        ([str(number) for number in range(12)], {TORCHVISION}),
        (["class1", "class2", "class10"], {TIMM}),
        (["Abyssinian", "beagle", "Birman"], {TIMM}),
        (["n01440764", "n01443537", "n02102040"], set()),
        (list("0123456789"), set()),
    ],
)
def test_the_orders_are_those_that_the_programs_have(tmp_path, names, differ):
    for name in names:
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / name / "0.png")
    ordered = DATASETS.build(Plugin("images", {"path": str(tmp_path)})).class_names
    by_program = {
        TORCHVISION: ImageFolder(str(tmp_path)).class_to_idx,
        TIMM: find_images_and_targets(str(tmp_path))[1],
    }
    orders = other_orders(ordered)
    assert orders == {program: [by_program[program][name] for name in ordered] for program in sorted(differ)}
    assert all(
        [by_program[program][name] for name in ordered] == [*range(len(names))]
        for program in by_program.keys() - differ
    )


def test_names_that_are_not_all_known_say_nothing():
    assert other_orders(None) == other_orders(["10", None, "2"]) == other_orders(["10", "", "2"]) == {}


def test_the_first_class_of_another_label_is_named():
    assert in_another_order(["0", "1", "2", "10"], [0, 1, 3, 2]) == "'2' is class 2 here, 3 there"
