"""The pictures of a language model's attention: well-formed, with every label, and the values as opacity."""

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from dit_shd.analysis.survey import LayerMaps, LayerSurvey
from dit_shd.reports.figures.token_maps import alpha_by_layer_figure, similarity_panels, token_maps


def pixels(svg):
    """The opacity of each picture in an SVG, from 0 to 1."""
    images = re.findall(r"data:image/png;base64,([^\"]+)", svg)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))[..., 3] / 255 for data in images]


def layer(alpha):
    cosines = np.array([[1, 0.5], [0.5, 1]])
    return LayerSurvey("h.0", 4, cosines, ((0, 1),), ((0, 1),), alpha, np.zeros(1), np.zeros(1))


def test_a_map_is_shown_by_the_square_root_of_its_values():
    rows = np.random.default_rng(0).random((4, 3, 4))  # [n,h,m]
    maps = LayerMaps([0, 1, 2, 3], rows, rows.mean(0), rows.mean(1), 4, None, None)
    labels = ["In", " the", "<&>", "\n"]
    figures = token_maps(maps, [0, 2], labels)
    for svg, head in zip(figures, (0, 2), strict=True):
        texts = [each.text for each in ElementTree.fromstring(svg).iter() if each.text]
        assert texts.count("·the") == texts.count("<&>") == texts.count("\\n") == 2
        assert f"head {head}" in texts
        (image,) = pixels(svg)
        np.testing.assert_allclose(image, np.sqrt(rows[:, head] / rows[:, [0, 2]].max()), atol=1 / 255)


def test_similarity_has_the_full_colour_on_its_diagonal():
    (image,) = pixels(similarity_panels([layer(np.zeros((1, 2, 1)))], ["layer 0"]))
    np.testing.assert_array_equal(image, np.eye(2))


def test_alpha_stands_at_its_mean():
    alpha = np.array([[[0.2], [0.4]]])
    tree = ElementTree.fromstring(alpha_by_layer_figure([layer(alpha)]))
    (circle,) = tree.iter("circle")
    assert float(circle.get("cy")) == 180 * (1 - 0.3) + 10
    assert "h.0, merge 0: 0.30, deviation 0.10" in [each.text for each in tree.iter("title")]
