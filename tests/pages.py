"""Contents of pages for tests."""

import base64
import io
import re

from PIL import Image


def images_of(page: str) -> list[Image.Image]:
    found = re.findall(r'<img src="data:image/png;base64,([A-Za-z0-9+/=]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def words_of(page: str) -> str:
    """A page without its script, its style and its data, of which nothing may come from elsewhere."""
    assert page.count("<script>") == 1, "its own script, and no other"
    words = re.sub(r"<script.*?</script>|<style>.*?</style>", "", page, flags=re.DOTALL)
    words = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", words)
    assert "http:" not in words and "https:" not in words
    assert "<script" not in words
    assert not re.search(r'(src|srcset)="(?!")', words), "something is loaded from elsewhere"
    assert not re.search(r'(href|src)="(/|\w+:)', words), "a link leads away from the folder"
    return words
