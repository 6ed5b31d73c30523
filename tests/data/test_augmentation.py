"""timm's transforms, with every draw a function of seed, step and position."""

import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import ImageOps
from timm.data.auto_augment import NAME_TO_OP

from dit_shd.core.errors import UserError
from dit_shd.data.augmentation import (
    Augmentation,
    EvaluationTransform,
    ImageInput,
    TrainTransform,
    pil_image,
    posterize,
    renormalised,
)

RGB = ImageInput((3, 32, 24), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
GRAY = ImageInput((1, 28, 28), (0.286,), (0.353,), crop=1.0)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


@pytest.mark.parametrize("taken", [RGB, GRAY])
def test_the_same_position_of_a_step_gives_the_same_input_and_another_another(image, taken):
    transform = TrainTransform(Augmentation(), taken, seed=3)
    first = transform(image, 5, 2)
    assert first.shape == taken.shape and first.dtype == torch.float32
    others = [transform(image, step, position) for step, position in ((5, 3), (6, 2))]
    others.append(TrainTransform(Augmentation(), taken, seed=4)(image, 5, 2))
    assert not any(torch.equal(first, other) for other in others)
    random.random(), np.random.rand(), torch.rand(3)  # noqa: NPY002
    assert torch.equal(first, TrainTransform(Augmentation(), taken, seed=3)(image, 5, 2))


def test_the_generators_of_others_go_on_as_if_nothing_had_happened(image):
    transform = TrainTransform(Augmentation(), RGB)

    def draws(between):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
        first = random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002
        between()
        return (*first, random.random(), np.random.rand(), float(torch.rand(())))  # noqa: NPY002

    assert draws(lambda: None) == draws(lambda: transform(image, 0, 0))


def test_without_augmentation_what_comes_out_is_the_image_normalised():
    image = np.random.default_rng(1).integers(0, 256, (32, 24, 3), dtype=np.uint8)
    plain = Augmentation(crop=[1, 1], ratio=[0.75, 0.75], flip=0, policy=None, erasing=0)
    wanted = (torch.from_numpy(image).permute(2, 0, 1).double() / 255 - torch.tensor(RGB.mean)[:, None, None]) / (
        torch.tensor(RGB.std)[:, None, None]
    )
    torch.testing.assert_close(TrainTransform(plain, RGB)(image, 0, 0), wanted.float())
    torch.testing.assert_close(EvaluationTransform(RGB, crop=1.0)(image), wanted.float())


def test_a_mirrored_or_erased_share_is_the_one_asked_for():
    image = np.zeros((28, 28, 1), np.uint8)
    image[:, :14] = 255
    half = TrainTransform(Augmentation(crop=[1, 1], ratio=[1, 1], policy=None, erasing=0), GRAY)
    mirrored = sum(bool(half(image, 0, i)[0, 0, 0] < 0) for i in range(400))
    assert abs(mirrored - 200) < 50  # five standard deviations
    erase = Augmentation(crop=[1, 1], ratio=[1, 1], flip=0, policy=None, erasing=0.25, erasing_mode="const")
    erased = sum(bool((TrainTransform(erase, GRAY)(image, 0, i) == 0).any()) for i in range(400))
    assert abs(erased - 100) < 44


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "rnd-m9"}, "augmentation.policy: wanted one in timm's notation, .* found 'rnd-m9'"),
        ({"policy": "rand-x9"}, "augmentation.policy: wanted"),
        ({"crop": [1.0, 0.5]}, r"augmentation.crop: wanted \[smallest, largest\], found \[1.0, 0.5\]"),
        ({"crop": []}, r"augmentation.crop: wanted \[smallest, largest\], found \[\]"),
        ({"ratio": [1.0]}, "augmentation.ratio: wanted"),
    ],
)
def test_augmentations_that_there_are_not(options, message):
    with pytest.raises(UserError, match=message):
        TrainTransform(Augmentation(**options), RGB)


def test_channels_that_no_image_has_are_refused(image):
    with pytest.raises(UserError, match="takes 4 channels; wanted 1 or 3"):
        EvaluationTransform(ImageInput((4, 8, 8), (0.0,) * 4, (1.0,) * 4))(image)


def test_an_input_of_one_network_becomes_that_of_another(image):
    other = ImageInput(RGB.shape, (0.1, 0.2, 0.3), (1.0, 0.5, 0.25), RGB.crop)
    ours, theirs = (EvaluationTransform(taken)(image) for taken in (RGB, other))
    torch.testing.assert_close(renormalised(ours[None], RGB, other)[0], theirs, rtol=1e-4, atol=1e-5)
    assert renormalised(ours, RGB, ImageInput((3, 9, 9), RGB.mean, RGB.std)) is ours


@pytest.mark.parametrize("options", [{"crop": 1.0}, {"crop_mode": "squash"}, {"interpolation": "bilinear"}])
def test_an_evaluation_crops_and_scales_as_the_network_says(image, options):
    plain = ImageInput((3, 16, 16), (0.5,) * 3, (0.5,) * 3)
    found = EvaluationTransform(replace(plain, **options))(image)
    assert not torch.equal(EvaluationTransform(plain)(image), found)
    if "crop" in options:
        torch.testing.assert_close(found, EvaluationTransform(plain, **options)(image))


@pytest.mark.parametrize(
    "options",
    [
        {"ratio": [2.0, 2.0]},
        {"interpolation": "bilinear"},
        {"color_jitter": 0.9},
        {"erasing": 1.0, "erasing_mode": "const"},
    ],
)
def test_every_key_of_an_augmentation_has_an_effect(image, options):
    taken = ImageInput((3, 16, 16), (0.5,) * 3, (0.5,) * 3)
    base = {"policy": "rand-m9", "erasing": options.get("erasing", 0.0)}
    one, other = (TrainTransform(Augmentation(**{**base, **more}), taken)(image, 0, 0) for more in ({}, options))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("channels", [1, 3])
def test_no_bit_kept_is_black_and_others_are_as_pillow_keeps_them(image, channels):
    taken = pil_image(image, channels)
    for bits in (0, -2):
        black = posterize(taken, bits, fillcolor=(1, 2, 3))
        assert black.mode == taken.mode and black.size == taken.size and not np.asarray(black).any()
    for bits in range(1, 9):
        assert np.array_equal(posterize(taken, bits), ImageOps.posterize(taken, bits))


@pytest.mark.parametrize(("policy", "draws"), [("rand-m10-p1-n40-inc1", 3), ("v0", 100)])
@pytest.mark.parametrize("taken", [RGB, GRAY])
def test_a_policy_that_keeps_no_bit_goes_on_here_and_in_workers_and_timm_is_as_it_was(image, policy, draws, taken):
    before = {**NAME_TO_OP}
    transform = TrainTransform(Augmentation(policy=policy), taken)
    worker = pickle.loads(pickle.dumps(transform))
    for position in range(draws):
        assert torch.equal(transform(image, 0, position), worker(image, 0, position))
    assert before == NAME_TO_OP
