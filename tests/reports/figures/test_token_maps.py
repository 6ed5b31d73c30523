"""The figure of a language model's attention: well-formed, with every label, and the values as opacity."""

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from dit_shd.analysis.survey import LayerMaps
from dit_shd.reports.figures.token_maps import token_maps_figure


def pixels(svg):
    """The opacity of each picture in an SVG, from 0 to 1."""
    images = re.findall(r"data:image/png;base64,([^\"]+)", svg)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))[..., 3] / 255 for data in images]


def test_a_map_is_shown_by_the_square_root_of_its_values():
    rows = np.random.default_rng(0).random((4, 3, 4))  # [n,h,m]
    maps = LayerMaps([0, 1, 2, 3], rows, rows.mean(0), rows.mean(1), 4, None, None)
    labels = ["In", " the", "<&>", "\n"]
    svg = token_maps_figure(maps, [0, 2], labels)
    tree = ElementTree.fromstring(svg)
    texts = [each.text for each in tree.iter() if each.text]
    assert texts.count("·the") == texts.count("<&>") == texts.count("\\n") == 4
    assert {"head 0", "head 2"} <= set(texts) and "head 1" not in texts
    for image, head in zip(pixels(svg), (0, 2)):
        np.testing.assert_allclose(image, np.sqrt(rows[:, head] / rows[:, [0, 2]].max()), atol=1 / 255)
