"""Which layer of the student learns from which of the teacher."""

import pytest

from dit_shd.core.errors import UserError
from dit_shd.distillation.layer_map import layer_map


def test_proportional_map_is_the_papers():
    teacher, student = [f"b.{i}" for i in range(48)], [f"b.{i}" for i in range(24)]
    mapped = layer_map(teacher, student, "proportional")
    assert mapped["b.3"] == "b.7"  # the 4th takes the 8th
    assert mapped["b.23"] == "b.47"


def test_sections_keep_to_themselves_and_round_up():
    def names(a, b, c):
        return [
            f"{s}.{i}.attn" for s, n in (("en_inblocks", a), ("en_outblocks", b), ("de_blocks", c)) for i in range(n)
        ]

    mapped = layer_map(names(12, 12, 4), names(3, 3, 6), "sections")
    assert [mapped[f"en_inblocks.{i}.attn"] for i in range(3)] == [f"en_inblocks.{i}.attn" for i in (3, 7, 11)]
    assert [mapped[f"de_blocks.{i}.attn"] for i in range(6)] == [f"de_blocks.{i}.attn" for i in (0, 1, 1, 2, 3, 3)]


def test_a_map_of_names_is_in_the_order_of_the_layers_however_it_is_written():
    """vitkd takes the first two of it for the first blocks, and the last for the last."""
    names = [f"b.{i}" for i in range(4)]
    written = {"b.3": "b.2", "b.0": "b.0", "b.1": "b.1"}
    assert list(layer_map(names, names, written).items()) == [("b.0", "b.0"), ("b.1", "b.1"), ("b.3", "b.2")]


def test_text_queries_learn_from_their_layers_text_queries_where_it_has_any():
    teacher = ["b.0", "b.0:text", "b.1", "b.1:text", "b.2", "b.2:text", "b.3"]
    student = ["b.0", "b.0:text", "b.1", "b.1:text"]
    assert layer_map(teacher, student, "proportional") == {"b.0": "b.1", "b.0:text": "b.1:text", "b.1": "b.3"}


def test_text_queries_alone_are_paired_among_themselves():
    names = [f"b.{i}.attn:text" for i in range(4)]
    assert layer_map(names, names[:2]) == {names[0]: names[1], names[1]: names[3]}
    assert layer_map(names, names[:2], "last") == {names[1]: names[3]}


def test_layers_that_run_several_times_run_as_often_on_both_sides():
    three, two = (["a", *(f"a#{i}" for i in range(2, n + 1))] for n in (3, 2))
    assert layer_map(three, three) == {name: name for name in three}
    assert layer_map(["b.0", "b.1", "b.2"], three) == dict(zip(three, ["b.0", "b.1", "b.2"]))
    with pytest.raises(UserError, match="runs or calls attention 3 times in one forward, one of the student 2 times"):
        layer_map(three, two)


@pytest.mark.parametrize("how", ["sections", "proportional"])
def test_each_run_of_blocks_that_loop_is_a_layer_beside_a_model_without_loops(how):
    """The teacher's later runs were left out, without a word."""
    looped, plain = ["b.0", "b.1", "b.0#2", "b.1#2"], [f"b.{i}" for i in range(4)]
    assert layer_map(looped, plain, how) == dict(zip(plain, looped))
    assert layer_map(plain, looped, how) == dict(zip(looped, plain))
    assert layer_map(looped, plain[:2], how) == {"b.0": "b.1", "b.1": "b.1#2"}
    assert layer_map(looped, looped, how) == {name: name for name in looped}
    twice = ["b.0", "b.0#2", "b.1", "b.1#2"]  # calls of one run
    with pytest.raises(UserError, match="runs or calls attention 2 times in one forward, one of the student 1 times"):
        layer_map(twice, plain, how)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"x": "a.0"}, "student has no layer 'x'\\. It has"),
        ({0: "a.0"}, r"student has no layer '0' \(a map has names of layers, not their numbers\)"),
        ({"b.0": "y"}, "teacher has no layer 'y'"),
        ("sections", r"no section 'b\.\*'"),
        ("nearest", "wanted sections, proportional"),
    ],
)
def test_layer_maps_that_make_no_sense(how, message):
    with pytest.raises(UserError, match=message):
        layer_map(["a.0"], ["a.0", "b.0"], how)


def test_models_of_two_families_are_taken_whole():
    """MDT's sections and DiT's one have nothing in common: depth decides."""
    mdt, dit = ["in.0", "in.1", "out.0", "out.1"], ["blocks.0", "blocks.1"]
    assert layer_map(mdt, dit) == {"blocks.0": "in.1", "blocks.1": "out.1"}
    assert layer_map(dit, mdt) == {"in.0": "blocks.0", "in.1": "blocks.0", "out.0": "blocks.1", "out.1": "blocks.1"}


TWO_A_BLOCK = [[f"blocks.{i}.{name}" for i in range(depth) for name in ("attn1", "attn2")] for depth in (4, 2)]


@pytest.mark.parametrize("how", ["sections", "proportional"])
def test_layers_of_two_names_in_a_block_learn_from_layers_of_their_name(how):
    """A number inside of a name is no place in the model."""
    assert layer_map(*TWO_A_BLOCK, how) == {
        f"blocks.{i}.{name}": f"blocks.{2 * i + 1}.{name}" for i in (0, 1) for name in ("attn1", "attn2")
    }


def test_layers_of_a_name_that_the_teacher_lacks_are_paired_by_depth():
    mapped = layer_map(["b.0.attn1", "b.1.attn1"], ["b.0.attn1", "b.0.attn2"], "proportional")
    assert mapped == {"b.0.attn1": "b.0.attn1", "b.0.attn2": "b.1.attn1"}


@pytest.mark.parametrize("runs", [("", "#2"), ("", "#2", "#3")])
def test_later_runs_of_layers_learn_from_runs_of_their_number(runs):
    teacher, student = ([f"blocks.{i}{run}" for i in range(depth) for run in runs] for depth in (4, 2))
    pairs = {f"blocks.{i}{run}": f"blocks.{2 * i + 1}{run}" for i in (0, 1) for run in runs}
    assert layer_map(teacher, student, "proportional") == layer_map(teacher, student) == pairs


def test_layers_that_are_numbered_in_their_names_are_one_section():
    assert layer_map(["block1", "block2", "block3", "block4"], ["block1", "block2"]) == {
        "block1": "block2",
        "block2": "block4",
    }


def test_the_last_layer_is_that_of_the_image():
    assert layer_map(["a.0", "a.1", "a.1:text"], ["b.0", "b.0:text"], "last") == {"b.0": "a.1"}
