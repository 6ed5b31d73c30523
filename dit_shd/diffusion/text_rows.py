"""Which rows of a layer are a sample's own, where the prompts of a batch are padded to one length."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor
from torch.nn.functional import pad

from dit_shd.core.errors import UserError


@dataclass(frozen=True)
class TextRows:
    """How the layers of a transformer hold text beside the tokens of an image."""

    side: int = 1
    """Height and width of a token's patch of the latents."""
    stream_multiple: int | None = None
    """Of one stream of text and image, padded to the longest of a batch: what the rows of each are a multiple of, by
    rows that the model has learned; None where text has rows apart."""
    text_alone: Sequence[str] = ()
    """Patterns of the layers that are of text alone."""
    text_keys: bool = False
    """Whether the image's queries have keys of text, before those of the image, and text has no rows."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text_alone", tuple(self.text_alone))  # a list, once it was written into a file

    def is_text(self, layer: str) -> bool:
        """Whether a layer is of text alone."""
        return any(fnmatchcase(layer, pattern) for pattern in self.text_alone)

    def image_keys(self, size: tuple[int, int], rows: int, keys: int) -> slice | None:
        """Which keys are the image's in a layer whose modules do not tell it; None: all of them.

        Args:
            size: Height y and width x of the latents.
            rows: Rows n of the layer.
            keys: Its keys m.

        Raises:
            UserError: The layer is of text and image, and each sample's image begins behind its own text.
        """
        image = _up((size[0] // self.side) * (size[1] // self.side), self.stream_multiple or 1)
        if rows == keys > image:
            raise UserError(
                f"the {image} tokens of the image are not at one place among the {keys} of the layer: they begin "
                "behind each sample's own text; block=joint"
            )
        return slice(keys - image, keys) if self.text_keys and keys > rows == image else None

    def weight(self, mask: Tensor, size: tuple[int, int], rows: int) -> Tensor | None:
        """The factor [b,n] of every row, 0 for padding; None: 1 each.

        A sample's own weigh so that their mean over n is the mean over them alone, whatever the other prompts are. Rows
        apart are one for each token of text, which stands before the image where both are together. In one stream the
        number of rows is that of the longest prompt in the batch. Where as many rows could be of the one or the other,
        all weigh 1.

        Args:
            mask: Which tokens are a prompt's, bool [b,m].
            size: Height y and width x of the latents.
            rows: Rows n of the layer.
        """
        image = (size[0] // self.side) * (size[1] // self.side)
        if self.stream_multiple is None:
            if rows == mask.shape[1] + image:
                mask = pad(mask, (0, image), value=True)
            return None if rows != mask.shape[1] or rows == image else _share(mask)
        if mask.is_meta:  # of a batch that is only counted
            return None
        image = _up(image, self.stream_multiple)
        text = mask.sum(1).div(self.stream_multiple).ceil().long() * self.stream_multiple
        longest = int(text.max())
        apart = mask.shape[1] if self.stream_multiple == 1 else longest
        fitting = [count for count, n in ((text, apart), (text + image, longest + image)) if n == rows]
        if rows == image or len(fitting) != 1:
            return None
        shown = torch.arange(rows, device=mask.device) < fitting[0][:, None]
        return _share(shown)


@dataclass(frozen=True)
class PaddedImageRows(TextRows):
    """Of a model that pads the tokens of images that are not square, before the text, and takes padding for text."""

    padded: int = 0
    """Rows of such an image."""

    def weight(self, mask: Tensor, size: tuple[int, int], rows: int) -> Tensor | None:
        """0 for the padding of an image; rows of text all weigh alike."""
        image = (size[0] // self.side) * (size[1] // self.side)
        if size[0] == size[1] or rows < self.padded:
            return None
        place = torch.arange(rows, device=mask.device)
        return _share(((place < image) | (place >= self.padded)).expand(len(mask), rows))


@dataclass(frozen=True)
class SortedTextRows(TextRows):
    """Of a model that has text of two encoders behind the image, the tokens of prompts first and all padding last."""

    first: int = 0
    """Tokens of the encoder whose tokens are first in masks; the other's are in rows of their own, too."""
    both: bool = True
    """Whether the model reads the first encoder."""

    def weight(self, mask: Tensor, size: tuple[int, int], rows: int) -> Tensor | None:
        """As in TextRows, where text has rows apart."""
        if mask.is_meta:
            return None
        image = (size[0] // self.side) * (size[1] // self.side)
        alone = mask[:, self.first :] if mask.shape[1] > self.first else mask
        read = mask if self.both else alone
        ordered = torch.arange(read.shape[1], device=mask.device) < read.sum(1, keepdim=True)
        joint = pad(ordered, (image, 0), value=True)
        masks = {each.shape[1]: each for each in (alone, ordered, joint)}
        return None if rows == image or rows not in masks else _share(masks[rows])


def _share(shown: Tensor) -> Tensor:
    """Weights [b,n] of the rows shown, bool [b,n], whose mean over n is the mean over these rows."""
    return shown * (shown.shape[1] / shown.sum(1).clamp(min=1))[:, None].float()


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
