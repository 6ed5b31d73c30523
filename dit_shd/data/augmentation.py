"""From an image to what a network takes: timm's transforms, for training (augmented) and for evaluation.

timm draws from the global generators of Python, numpy and torch; here they are set for each image, so that what
becomes of it is a function of (seed, step, position) alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import ImageOps
from PIL.Image import Image, fromarray
from torch import Tensor

from dit_shd.core.config import option
from dit_shd.core.errors import UserError
from dit_shd.core.rng import keyed_generators


@dataclass(frozen=True)
class ImageInput:
    """What an image classifier takes."""

    shape: tuple[int, int, int]
    """(c, y, x)."""
    mean: tuple[float, ...]
    """Of each channel, of values in [0, 1]: it is subtracted."""
    std: tuple[float, ...]
    """Of each channel: what is left is divided by it."""
    crop: float = 0.875
    """Share of an image's smaller side that evaluation takes (timm's crop_pct)."""
    interpolation: str = "bicubic"
    """How evaluation scales."""
    crop_mode: str = "center"
    """What evaluation crops, in timm's words: center, squash or border."""


@dataclass(frozen=True)
class Augmentation:
    """What training does to an image; the defaults are DeiT's (arXiv 2012.12877, table 9), but for repeats (3)."""

    crop: list[float] = option(
        [0.08, 1.0],
        "smallest and largest share of the image's area that a random crop takes",
        range=(1e-4, 1),
    )
    ratio: list[float] = option([0.75, 4 / 3], "smallest and largest ratio of a random crop's sides", range=(1e-2, 100))
    flip: float = option(0.5, "probability of mirroring left to right", range=(0, 1))
    policy: str | None = option(
        "rand-m9-mstd0.5-inc1", "RandAugment, AutoAugment or AugMix in timm's notation; empty for none"
    )
    color_jitter: float = option(0.0, "strength of brightness, contrast and saturation jitter", range=(0, 1))
    interpolation: Literal["bicubic", "bilinear", "random"] = option("bicubic", "how a random crop is scaled")
    erasing: float = option(0.25, "probability of erasing a random rectangle", range=(0, 1))
    erasing_mode: Literal["pixel", "rand", "const"] = option(
        "pixel", "what it is filled with: noise by pixel, a colour at random, or the mean"
    )
    repeats: int = option(
        1, "copies of an image in a batch, each augmented anew (repeated augmentation)", range=(1, 64)
    )


class TrainTransform:
    """The augmentation of one run.

    Args:
        seed: The seed of the run.

    Raises:
        UserError: A policy that timm cannot read.
    """

    def __init__(self, augmentation: Augmentation, image_input: ImageInput, seed: int = 0) -> None:
        self._check(augmentation)
        self.input, self.seed = image_input, seed
        self._transform = _train_transform(augmentation, image_input)

    @staticmethod
    def _check(augmentation: Augmentation) -> None:
        for name, ends in (("crop", augmentation.crop), ("ratio", augmentation.ratio)):
            if len(ends) != 2 or ends[0] > ends[1]:
                raise UserError(f"augmentation.{name}: wanted [smallest, largest], found {ends}")

    def __call__(self, image: np.ndarray, step: int, position: int) -> Tensor:
        """An image uint8 [y,x,c] as the input [c,y,x] for one position of a step's batch."""
        with keyed_generators(self.seed, "augmentation", step, position):
            return self._transform(pil_image(image, self.input.shape[0]))


class EvaluationTransform:
    """timm's transform for evaluation: scale, centre crop, normalise.

    Args:
        crop: Share of the smaller side; None for the network's own.
    """

    def __init__(self, image_input: ImageInput, crop: float | None = None) -> None:
        from timm.data.transforms_factory import transforms_imagenet_eval

        self.input = image_input
        self._transform: Any = transforms_imagenet_eval(
            img_size=image_input.shape[1:],
            crop_pct=image_input.crop if crop is None else crop,
            crop_mode=image_input.crop_mode,
            interpolation=image_input.interpolation,
            mean=image_input.mean,
            std=image_input.std,
        )

    def __call__(self, image: np.ndarray) -> Tensor:
        """An image uint8 [y,x,c] as the input [c,y,x]."""
        return self._transform(pil_image(image, self.input.shape[0]))


def _train_transform(augmentation: Augmentation, image_input: ImageInput) -> Callable[[Any], Tensor]:
    from timm.data.auto_augment import posterize as timm_posterize
    from timm.data.transforms_factory import transforms_imagenet_train

    try:
        transform: Any = transforms_imagenet_train(
            img_size=image_input.shape[1:],
            scale=(augmentation.crop[0], augmentation.crop[1]),
            ratio=(augmentation.ratio[0], augmentation.ratio[1]),
            hflip=augmentation.flip,
            color_jitter=augmentation.color_jitter or None,  # type: ignore[arg-type]
            force_color_jitter=augmentation.color_jitter > 0,
            auto_augment=augmentation.policy,
            interpolation=augmentation.interpolation,
            mean=image_input.mean,
            std=image_input.std,
            re_prob=augmentation.erasing,
            re_mode=augmentation.erasing_mode,
        )
    except (AssertionError, ValueError, KeyError) as error:
        wanted = "one in timm's notation, as rand-m9-mstd0.5-inc1"
        raise UserError(f"augmentation.policy: wanted {wanted}, found '{augmentation.policy}'") from error
    for op in _operations(transform):
        if op.aug_fn is timm_posterize:
            op.aug_fn = posterize
    return transform


def _operations(transform: Any) -> Iterator[Any]:  # noqa: ANN401
    """timm's AugmentOps in a transform: of RandAugment, AutoAugment (lists of them) and AugMix."""
    if hasattr(transform, "aug_fn"):
        yield transform
    parts = transform if isinstance(transform, list | tuple) else ()
    for name in ("transforms", "ops", "policy"):
        parts = (*parts, *getattr(transform, name, ()))
    for part in parts:
        yield from _operations(part)


def posterize(image: Image, bits: int, **_: object) -> Image:
    """timm's operation, also where it keeps no bit: black, which Pillow 13 refuses.

    Args:
        image: Of mode L or RGB.
        bits: How many are kept of each channel; 8 or more leave the image as it is.
    """
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits >= 1 else image.point(lambda _: 0)


def pil_image(image: np.ndarray, channels: int) -> Image:
    """A PIL image of uint8 [y,x,c] with as many channels as a network takes."""
    if channels not in (1, 3):
        raise UserError(f"the network takes {channels} channels; wanted 1 or 3, as images have")
    plain = fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    return plain.convert("L" if channels == 1 else "RGB")


def renormalised(pixels: Tensor, done: ImageInput, wanted: ImageInput) -> Tensor:
    """Inputs [b,c,y,x] that were normalised for one network, as another takes them."""
    if (done.mean, done.std) == (wanted.mean, wanted.std):
        return pixels
    mean, std, mean_wanted, std_wanted = (
        torch.tensor(values, dtype=pixels.dtype, device=pixels.device)[:, None, None]
        for values in (done.mean, done.std, wanted.mean, wanted.std)
    )
    return (pixels * std + (mean - mean_wanted)) / std_wanted
