"""The page of a study: its findings in words."""

import pytest

from dit_shd.reports.study_page import Table, verdicts


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ("SHD beats output alone", "SHD beats output alone"),
        ("MiniLMv2's relations add to it", "MiniLMv2's relations add to it"),
        ("Attention supervision helps", "attention supervision helps"),
        ("A student learns", "a student learns"),
    ],
)
def test_names_keep_their_capitals(claim, said):
    claims = Table([("claim", ""), ("verdict", "")], [[claim, "seen"], ["Another", "not seen"]])
    assert verdicts(claims) == ["Of 2 claims: 1 seen, 1 not seen.", f"Seen: {said}."]
