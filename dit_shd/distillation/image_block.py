"""Image queries over image keys of maps over text and image in one sequence."""

from collections.abc import Iterable

from dit_shd.attention.capture import Capture
from dit_shd.core.errors import UserError
from dit_shd.tasks import Batch


def of_image(layers: Iterable[str], batch: Batch | None) -> list[str]:
    """The layers with queries of an image: NAME:text has those of text, as have whole layers of some models.

    Args:
        layers: Names.
        batch: Of training; None in a script that calls a loss by itself.
    """
    return [name for name in layers if ":" not in name and (batch is None or batch.is_of_image(name))]


def over_image(layer: str, capture: Capture, batch: Batch | None) -> Capture:
    """The image's block of a layer's map.

    Args:
        layer: Its name.
        capture: Of the whole map.
        batch: As in of_image; it says where the image stands where the layer's own modules do not.

    Raises:
        UserError: It cannot be cut.
    """
    try:
        if batch is None or capture.image is not None:
            return capture.over_image()
        return capture.over_image(batch.image_keys(*capture.shape[2:]))
    except UserError as error:
        raise UserError(f"SHD: {layer}: {error}") from error
