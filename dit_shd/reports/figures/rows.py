"""One picture of several models: a labelled row of samples of each, the same classes in the same columns."""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dit_shd.reports.html import png

SIDE, GAP, MARGIN = 64, 4, 12
"""Height of an image, space between images and around them, in pixels."""
TEXT = 17
"""Height of the labels' letters in pixels."""
PAPER, INK = "#ffffff", "#1a1a1a"


def rows_picture(rows: Mapping[str, np.ndarray], columns: int = 10) -> bytes:
    """The first images of each model as a PNG; none is chosen.

    Args:
        rows: Label -> images uint8 [n,y,x,c]; a label may have several lines.
        columns: Images of each row.

    Returns:
        The PNG.
    """
    font = ImageFont.load_default(TEXT)
    labels = int(np.ceil(max(font.getlength(line) for label in rows for line in label.split("\n"))))
    left = 2 * MARGIN + labels
    size = (left + columns * (SIDE + GAP) - GAP + MARGIN, 2 * MARGIN + len(rows) * (SIDE + GAP) - GAP)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, (label, images) in enumerate(rows.items()):
        top = MARGIN + row * (SIDE + GAP)
        draw.multiline_text((MARGIN, top + SIDE / 2), label, fill=INK, font=font, anchor="lm", spacing=6)
        for column, image in enumerate(images[:columns]):
            picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
            sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left + column * (SIDE + GAP), top))
    return png(sheet)
