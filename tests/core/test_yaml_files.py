"""Values in a line that YAML reads as they were."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_shd.cli.arguments import _as_text
from dit_shd.core.yaml_files import as_json, override, parse_yaml, words_of

TEXTS = ["a cat 😀", "\\ud83d\\ude00", "\\\\😀", "𠀀", "é", "\x7f\u2028\ufeff", "two: four # five", "\\", '"', "😀\\"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_character_beyond_the_first_plane_is_one(text):
    """A path or prompt with an emoji had been refused as no UTF-8 wherever it was given as key=value."""
    for value in (text, [text], {"path": text}):
        assert parse_yaml(as_json(value)) == value == json.loads(json.dumps(value))
        assert override({}, words_of({"key": value})) == {"key": value}
    assert override({}, [_as_text(f"key={text}", "text")])["key"] == text or text == '"'


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=200, deadline=None)
def test_any_text_is_read_as_it_was(text):
    assert parse_yaml(as_json(text)) == text
    assert override({}, words_of({"key": text})) == {"key": text}
