"""Settings over a config, and the hash of plain values."""

from dit_shd.study.settings import applied, canonical_sha256, in_turn


def test_a_schedule_by_steps_and_shares_has_a_hash():
    one, other = {"weight": {0: 1.0, "20%": 0.5}}, {"weight": {"20%": 0.5, 0: 1.0}}
    assert canonical_sha256(one) == canonical_sha256(other) != canonical_sha256({"weight": {0: 1.0, "30%": 0.5}})


def test_settings_count_in_the_order_in_which_they_are_set_last():
    settings = in_turn({"a.b": 1, "c": 1}, {"a": {"d": 2}}, {"a.b": 3})
    assert [*settings] == ["c", "a", "a.b"]
    assert applied({"a": {"b": 0, "e": 0}}, settings) == {"a": {"d": 2, "b": 3}, "c": 1}
