"""What is asked of unlike numbers of tokens."""

import pytest

from dit_shd.distillation.token_counts import ANY, reason


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        (
            (198, 198),
            (197, 197),
            "of images: 196 patches each, with 2 tokens in front of them in the student and 1 ",
        ),
        (
            (196, 196),
            (201, 201),
            "of images: 196 patches each, with 0 tokens in front of them in the student and 5 ",
        ),
        ((196, 196), (49, 49), ANY),
        ((25, 25), (16, 16), ANY),
        ((64, 77), (64, 70), ANY),
    ],
)
def test_tokens_before_the_patches_are_asked_for_where_they_may_be(student, teacher, words):
    assert reason(student, teacher).startswith(words)
