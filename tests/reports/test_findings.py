"""What a page says first, from the figures of its table."""

import re

import pytest

from dit_shd.profiling.cost import Cost
from dit_shd.reports.figures.quality import quality_charts
from dit_shd.reports.findings import best_student, change, compared, cost_shares, tiles
from dit_shd.reports.tables import Row, figures_table, higher_is_better, lower_is_better, number

BIG, SMALL = Cost(4, 1000, 800, 2.0), Cost(2, 260, 200, 1.0)


def rows(name: str, *values: float, cost: Cost | None = SMALL) -> list[Row]:
    titles = ("teacher", "output only", "output + SHD")
    costs = (BIG, cost, cost)
    return [Row(title, c, {name: value}) for title, c, value in zip(titles, costs, values)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_diverged_is_not_advertised(value):
    assert compared(rows("FD(d)", 1.0, value)[:2], "FD(d)") == [
        f"“output only” has no finite FD(d) ({value}); that of the teacher is 1.00."
    ]
    charts = quality_charts([*rows("FD(d)", 1.0, 2.0, value)], "FD(d)")
    assert len(charts) == 3 and not any(re.search(r'"-?(inf|nan)"', chart.svg()) for chart in charts)
    assert all("output + SHD" not in chart.svg() for chart in charts)


@pytest.mark.parametrize(
    ("value", "other", "words"),
    [
        (69, 100, "31% lower"),
        (131, 100, "31% higher"),
        (250, 100, "2.5 times as high"),
        (1, 1, "the same"),
        (100.2, 100, "the same to half a percent"),
        (3, 0, "not to be compared with 0"),
        (0.002, -0.001, "0.0030 higher"),
        (-0.001, 0.002, "0.0030 lower"),
        (-0.004, -0.001, "0.0030 lower"),
    ],
)
def test_a_change_in_words(value, other, words):
    assert change(value, other) == words


def test_the_best_student_is_set_against_the_other_and_the_teacher():
    first, second = compared(rows("FD(digits)", 5.0, 27.0, 18.63), "FD(digits)")
    assert first == "“output + SHD” has FD(digits) 18.63: 31% lower than “output only”."
    assert second == (
        "At 0.26 of the parameters, 0.25 of the operations and 0.50 of the latency of the teacher, “output + SHD” has "
        "FD(digits) 18.63 against 5.00 of the teacher."
    )


def test_higher_is_better_where_it_is():
    scored = rows("precision", 0.9, 0.5, 0.4)
    assert best_student(scored, "precision").name == "output only"
    assert "25% higher than “output + SHD”" in compared(scored, "precision")[0]


@pytest.mark.parametrize(
    "name",
    ["IS(digits)", "IS(a/b) by photographs", "training/top1", "training/top1_ema_0", "CLIP score(clip-ab)", "recall"],
)
def test_scores_are_known_by_their_names(name):
    assert higher_is_better(name)
    assert not any(map(higher_is_better, ("FD(digits)", "KID(x)", "training/perplexity", "training/validation_loss")))


@pytest.mark.parametrize(
    "name", ["top1_error", "accuracy_drop", "FD_improvement", "loss_reduction", "perplexity_ratio", "IS_std"]
)
def test_a_name_that_begins_as_a_known_one_is_another_figure(name):
    """Its direction was that of the known one: the worse was said to be better."""
    assert not higher_is_better(name) and not lower_is_better(name)


@pytest.mark.parametrize("name", ["training/perplexity_ema_0.999", "training/loss_ema_0", "FD(digits)", "FD(a) by b"])
def test_distances_are_known_by_their_names(name):
    assert lower_is_better(name) and not higher_is_better(name)


def test_without_costs_only_quality_is_said():
    scored = rows("FID", 5.0, 27.0, 18.0, cost=None)
    assert cost_shares(scored[1], scored[0]) == {}
    assert compared(scored, "FID")[1] == "“output + SHD” has FID 18.00 against 5.00 of the teacher."
    assert set(tiles(scored, "FID")) == {"FID, output + SHD", "FID, teacher"}
    assert len(compared(scored[:2], "FID")) == 1, "one student has no other to be set against"


def test_nothing_is_said_of_a_figure_whose_direction_is_not_known():
    scored = rows("sharpness", 0.1, 0.5, 0.2)
    headings, _, best = figures_table(scored)
    assert headings[-1] == ("sharpness", "") and best[-1] == -1
    assert figures_table(rows("recall", 0.1, 0.5, 0.2))[2][-1] == 1
    assert figures_table(rows("KID(x)", 0.1, 0.5, 0.2))[2][-1] == 2
    assert compared(scored, "sharpness")[0].endswith("2.5 times as high as “output + SHD”.")


def test_the_best_is_bold_where_others_tie():
    scored = [*rows("FD(x)", 1.0, 5.0, 5.0), Row("third", None, {"FD(x)": 3.0})]
    assert figures_table(scored)[2][-1] == 3
    assert figures_table(scored[:3])[2][-1] == -1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.00014, "0.00014"), (-0.000034, "-0.000034"), (0.0012, "0.0012"), (0, "0.0000"), (1e-17, "0.0000"), (5, "5.00")],
)
def test_small_figures_keep_two_digits(value, text):
    assert number(value) == text
    assert change(0.00014, 0.00011) == "27% higher"


@pytest.mark.parametrize("name", ["FD(digits)", "IS"])
@pytest.mark.parametrize("values", [(5.0, float("nan"), 6.0), (5.0, 6.0, float("nan"))])
def test_a_student_that_has_diverged_is_not_the_best(name, values):
    """NaN compares with nothing, so that it was the best where it came first."""
    table = rows(name, *values)
    best = 1 if values[1] == 6 else 2
    assert best_student(table, name) is table[best]
    assert figures_table(table)[2][-1] == best
    assert "not to be compared" in compared(table, name)[0] and "nan%" not in " ".join(compared(table, name))
