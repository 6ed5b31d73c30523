"""Tables as text."""

import math

import pytest

from dit_shd.reports.tables import number, plain_table

HEADINGS = [("model", ""), ("FD", "lower is better"), ("n", "seeds")]


def test_columns_are_aligned_and_units_stand_behind_the_names():
    assert plain_table(HEADINGS, [["a", "1.00", "3"], ["longer", "12.00", "10"]]) == (
        "model    FD ↓  n (seeds)\na        1.00          3\nlonger  12.00         10"
    )


def test_names_of_other_scripts_and_of_several_lines_keep_the_columns():
    """Letters of East Asia take two columns of a terminal; a mark above another letter takes none."""
    lines = plain_table(HEADINGS[:2], [["学生", "1.00"], ["a\nb", "2.00"], ["e\u0301", "3.00"]]).split("\n")
    assert lines == ["model  FD ↓", "学生   1.00", "a b    2.00", "e\u0301      3.00"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(123.456, "123.46"), (0.5, "0.500"), (2.5e-4, "0.00025"), (9_999_999, "9999999.00"), (1.0142e304, "1.01e+304"),
     (math.inf, "inf"), (math.nan, "nan")],
)  # fmt: skip
def test_a_figure_is_told_in_few_letters(value, text):
    """That of a model that had diverged took 305 digits."""
    assert number(value) == text
