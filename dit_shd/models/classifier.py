"""What an image classifier takes and knows."""

from typing import Any

from torch import nn

from dit_shd.core.errors import UserError
from dit_shd.data.augmentation import ImageInput


def image_input(role: str, model: nn.Module) -> ImageInput:
    """What a classifier takes.

    Raises:
        UserError: It is none.
    """
    taken = getattr(model, "input", None)
    if not isinstance(taken, ImageInput):
        raise UserError(
            f"{role}: wanted an image classifier, as {{name: timm, model: ...}}, found {type(model).__name__}"
        )
    return taken


def known_classes(role: str, model: nn.Module) -> int:
    """How many classes a classifier knows.

    Raises:
        UserError: It does not say.
    """
    settings: Any = getattr(model, "config", {})
    classes = settings.get("num_classes")
    if not isinstance(classes, int):
        raise UserError(f"{role}: wanted a classifier whose config has num_classes, found {type(model).__name__}")
    return classes
