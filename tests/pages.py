"""Contents of pages for tests."""

import base64
import io
import re

from PIL import Image


def images_of(page: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/png;base64,([A-Za-z0-9+/=]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def words_of(page: str) -> str:
    words = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page)
    assert "http" not in words
    assert "<script" not in words
    assert not re.search(r'(src|href|srcset)="(?!")', words), "something is loaded from elsewhere"
    return words
