import pytest

from dit_shd.core.errors import UserError
from dit_shd.models.students import smaller

SD3 = {
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "dual_attention_layers": list(range(13)),
    "in_channels": 16,
}
SANA = {
    "num_layers": 20,
    "num_attention_heads": 70,
    "attention_head_dim": 32,
    "num_cross_attention_heads": 20,
    "cross_attention_head_dim": 112,
    "cross_attention_dim": 2240,
}
LUMINA = {"num_layers": 26, "hidden_size": 2304, "num_attention_heads": 24, "num_kv_heads": 8}


def test_what_follows_from_heads():
    student = smaller(SD3, {"num_attention_heads": 12})
    assert student == {**SD3, "num_attention_heads": 12, "caption_projection_dim": 768}
    student = smaller(SANA, {"num_attention_heads": 35})
    assert (student["num_cross_attention_heads"], student["cross_attention_dim"]) == (10, 1120)
    student = smaller(LUMINA, {"num_attention_heads": 12})
    assert (student["num_kv_heads"], student["hidden_size"]) == (4, 1152)


def test_feed_forward_layers_keep_their_ratio_to_the_width():
    """Wan's are named by their width: half the heads had kept all of it, without a word."""
    wan = {"num_layers": 30, "num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960}
    assert smaller(wan, {"num_attention_heads": 6})["ffn_dim"] == 4480
    assert smaller(wan, {"num_attention_heads": 5})["ffn_dim"] == 3733
    assert smaller(wan, {"attention_head_dim": 64})["ffn_dim"] == 4480
    assert smaller(wan, {"num_attention_heads": 6, "ffn_dim": 8960})["ffn_dim"] == 8960
    assert smaller(wan, {"num_layers": 15})["ffn_dim"] == 8960


def test_what_follows_from_layers():
    """A layer that is made of one with two attentions has two."""
    student = smaller(SD3, {"num_layers": 12})
    assert student["dual_attention_layers"] == [0, 1, 2, 3, 4, 5]  # of layers 1, 3, 5, ..., 11
    assert smaller(SD3, {"num_layers": 12, "dual_attention_layers": [0]})["dual_attention_layers"] == [0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_layers": 30}, r"student.num_layers: wanted at most the teacher's 24, found 30"),
        ({"num_attention_heads": 32}, "wanted at most the teacher's 24, found 32"),
        ({"num_heads": 3}, "unknown key 'num_heads'"),
    ],
)
def test_wider_and_unknown_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        smaller(SD3, changes)


def test_heads_that_cannot_be_divided():
    with pytest.raises(UserError, match="num_kv_heads: 8 of 24 heads are no whole number of 7; name it"):
        smaller(LUMINA, {"num_attention_heads": 7})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads: wanted a whole number of 1 or more, found 0"),
        ({"num_attention_heads": "two"}, "wanted a whole number of 1 or more, found two"),
        ({"num_layers": 0}, "num_layers: wanted a whole number of 1 or more, found 0"),
        ({"num_layers": True}, "wanted a whole number of 1 or more, found True"),
    ],
)
def test_sizes_are_whole_numbers(changes, message):
    """A size of 0 ended in a division by it, and 0 layers in a line about attention."""
    with pytest.raises(UserError, match=message):
        smaller({"num_layers": 4, "num_attention_heads": 4, "attention_head_dim": 8}, changes)


def test_one_stack_of_several_may_be_empty():
    sizes = {"num_layers": 4, "num_single_layers": 8, "num_attention_heads": 4}
    assert smaller(sizes, {"num_layers": 0})["num_layers"] == 0
