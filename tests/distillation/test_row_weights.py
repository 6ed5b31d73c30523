"""Row weights of layers that have other rows, as text and image in joint attention."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from random_captures import random_capture

from dit_shd import SHD
from dit_shd.core.errors import UserError
from dit_shd.distillation.row_weights import nothing

LAYERS = {"a": 7, "a:text": 5, "b": 7}


def captures(h):
    draw = partial(random_capture, h=h, m=9, bias=False)
    return {name: draw(n=n, seed=10 * h + i) for i, (name, n) in enumerate(LAYERS.items())}


def rows(n):
    return torch.rand(2, n, generator=torch.Generator().manual_seed(n)).double()


def test_each_layer_counts_its_rows_by_the_first_pattern_that_fits_it():
    teacher, student = captures(4), captures(2)
    image, text = rows(7), rows(5)
    found = SHD().divergence(teacher, student, row_weight={"*:text": text, "a": image}).value
    alone = [({"a:text"}, text), ({"a"}, image), ({"b"}, None)]
    parts = []
    for names, weight in alone:
        t, s = ({name: c for name, c in of.items() if name in names} for of in (teacher, student))
        parts.append(SHD().divergence(t, s, row_weight=weight).value)
    torch.testing.assert_close(found, sum(parts))
    loss = SHD(weight=1.0)(teacher, student, row_weight={"*:text": text, "a": image})
    torch.testing.assert_close(loss, found.mean())
    torch.testing.assert_close(SHD()(teacher, student, row_weight={}), SHD()(teacher, student))
    first = SHD().divergence(teacher, student, row_weight={"a": image, "*:text": text, "*": 0 * image}).value
    torch.testing.assert_close(first, sum(parts[:2]))


def test_a_sample_of_a_wrong_weight_is_none_also_where_numbers_are_not_looked_at():
    """A weight that is below 0 or NaN would leave its row out."""
    good, bad = torch.ones(3, 4), torch.ones(3, 4)
    bad[1, 2], bad[2, 0] = -1.0, math.nan
    assert nothing(good).tolist() == [0, 0, 0]
    for weight in (bad, {"a": good, "b": bad}):
        assert nothing(weight).isnan().tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ({"c*": rows(7)}, r"no layer fits 'c\*'. Layers: a, a:text, b"),
        ({"a": rows(5)}, r"wanted \[2,7\], the rows of a, found \[2, 5\]$"),
        ({"a": [1.0] * 7}, r"'a': wanted a tensor \[b,n\], found list"),
        (rows(7), r"wanted \[2,5\], the rows of a:text, found \[2, 7\]; where layers have other rows, \{pattern"),
        ({"a": -rows(7)}, "wanted finite numbers of 0 or more"),
        ({"a": rows(7) * math.nan}, "wanted finite numbers of 0 or more"),
    ],
)
def test_weights_that_do_not_fit(weight, message):
    with pytest.raises(UserError, match=message):
        SHD()(captures(4), captures(2), row_weight=weight)


def test_the_samples_of_a_layer_that_takes_them_one_at_a_time_have_their_rows():
    teacher, student = captures(4), captures(2)
    weight = rows(7)

    def apart(layers, lengths=(7, 7)):
        layer = layers["a"]
        return {
            f"a{'#2' if i else ''}": replace(
                layer, query=layer.query[i : i + 1, :, :n], key=layer.key[i : i + 1], value=layer.value[i : i + 1],
                share=0.5,
            )
            for i, n in enumerate(lengths)
        }  # fmt: skip

    together = SHD()({"a": teacher["a"]}, {"a": student["a"]}, row_weight=weight)
    torch.testing.assert_close(SHD()(apart(teacher), apart(student), row_weight=weight), together)
    with pytest.raises(UserError, match=r"a#2 takes its samples in parts .*, here 1 of 2 with 5 rows, found \[2, 7\]"):
        SHD()(apart(teacher, (7, 5)), apart(student, (7, 5)), row_weight=weight)


def test_a_layer_that_takes_its_samples_one_at_a_time_and_runs_again_has_the_same_rows():
    """a, a#2: the samples of its first run; a#3, a#4: those of its second."""
    teacher, student = captures(4), captures(2)
    weight = rows(7)

    def apart(of):
        parts = [(of[name], i) for name in ("a", "b") for i in range(2)]
        return {
            f"a{f'#{run}' if run > 1 else ''}": replace(
                layer, query=layer.query[i : i + 1], key=layer.key[i : i + 1], value=layer.value[i : i + 1], share=0.5
            )
            for run, (layer, i) in enumerate(parts, start=1)
        }

    together = SHD()(*({name: of[name] for name in ("a", "b")} for of in (teacher, student)), row_weight=weight)
    torch.testing.assert_close(SHD()(apart(teacher), apart(student), row_weight=weight), together)
