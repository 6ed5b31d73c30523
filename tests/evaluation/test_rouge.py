"""ROUGE-L against the longest common subsequence worked out by hand."""

import pytest

from dit_shd.evaluation.rouge import other_letters, rouge_l

pytest.importorskip("rouge_score")


def oracle(one, other):
    """2 P R / (P + R) of the longest common subsequence of words, by its recurrence."""
    a, b = one.lower().split(), other.lower().split()
    best = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            best[i + 1][j + 1] = best[i][j] + 1 if x == y else max(best[i][j + 1], best[i + 1][j])
    common = best[-1][-1]
    return 2 * common / (len(a) + len(b)) if common else 0.0


PAIRS = [
    ("the dog sat on the mat", "the cat sat on a mat"),
    ("a b c d", "d c b a"),
    ("Red Green blue", "red blue"),
    ("one", "two"),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_it_is_the_f_measure_of_the_longest_common_subsequence(one, other):
    assert rouge_l(one, [other]) == pytest.approx(oracle(one, other))


def test_the_nearest_reference_counts():
    assert rouge_l("red blue", ["green", "red blue", "blue"]) == 1
    assert rouge_l("", ["red"]) == 0
    assert rouge_l("running dogs", ["run dog"]) == 1  # words are stemmed


def test_other_letters_are_known():
    """The package makes words of a to z and digits alone: a right answer in others scores 0."""
    assert rouge_l("Москва", ["Москва"]) == 0
    assert other_letters("Москва") and other_letters("北京 is 首都城市") and not other_letters("café, naïve: 42")
    assert not other_letters("")
